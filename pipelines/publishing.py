"""The last step of a job: measure what smaller embeddings cost, write the model card, and put the student's folder.

Enters: a trained student and what the job knows of its data, its teacher and its result. Leaves: the student's folder
with everything that the spec's `export` asks for. Nothing is uploaded.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.candidates.dense import top_k_inner_product
from pipelines.candidates.miner import EmbeddedCorpus
from pipelines.comparison import RUN_DEPTH
from pipelines.corpus.dataset import Dataset
from pipelines.evaluation.metrics import PerQuery
from pipelines.evaluation.precision import RESCORE_MULTIPLIER, PrecisionResult, int8_ranges, measure_precisions
from pipelines.evaluation.result import MAIN_MEASURE, EvaluationResult
from pipelines.evaluation.round_table import ROUND_COLUMNS, round_cells
from pipelines.evaluation.wording import LABELS, signed, summary_sentences
from pipelines.job_context import JobContext
from pipelines.preparation import HeldOut
from pipelines.student.export import export_student
from pipelines.student.model import DualEncoder
from pipelines.student.model_card import CardFacts, Table, model_card
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.ranker_card import RankerCard, ranker_card
from pipelines.whole_files import whole_folder

__all__ = ["precision_facts", "publish_ranker", "publish_student", "write_ranker_card"]

_SEARCHES = {"int8": "int8", "binary": "binary", "binary_rescored": "binary, rescored"}


def precision_facts(results: tuple[PrecisionResult, ...]) -> dict[str, str]:
    """One line for each search, for the result and the report."""
    return {
        f"embeddings, {_SEARCHES[result.search]}": ", ".join(
            [
                f"{result.bytes_per_embedding} bytes",
                *(f"{name} {result.measures[name]:.3f} (loss {signed(lost)})" for name, lost in result.loss.items()),
            ]
        )
        for result in results
    }


def publish_student(
    context: JobContext,
    student: DualEncoder,
    dataset: Dataset,
    contract: ScoreContract,
    *,
    trained: EmbeddedCorpus | None,
    test: HeldOut | None,
    float32: PerQuery | None,
    result: EvaluationResult | None,
) -> tuple[PrecisionResult, ...]:
    """Write `artifacts/student`.

    Args:
        context: of the job.
        student: trained.
        dataset: of the job.
        contract: of the teacher's scores.
        trained: the corpus as `student` embeds it; None where there is no test split and no int8.
        test: the held-out queries; None without a test split, like the next two.
        float32: measures of the trained student on them, per query.
        result: of all systems.

    Returns:
        What the precisions of the job's `export` cost; empty when it names none, or there is no test split.
    """
    spec = context.spec.export
    ranges = int8_ranges(trained.documents) if trained and "int8" in spec.precisions else None
    precisions: tuple[PrecisionResult, ...] = ()
    if trained and test and float32 and spec.precisions:
        precisions = _measured(context, dataset, test, trained, float32)
    facts = _card_facts(context, student, dataset, contract, result=result, precisions=precisions)
    export_student(
        student, context.artifacts / "student", card=model_card(facts), formats=spec.formats, int8_ranges=ranges
    )
    return precisions


def publish_ranker(folder: Path, path: Path) -> None:
    """Put a copy of the ranker's last version at `path`, whole: `CrossEncoder(path)` loads it."""
    with whole_folder(path) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)


def write_ranker_card(
    context: JobContext,
    dataset: Dataset,
    contract: ScoreContract,
    *,
    result: EvaluationResult | None,
    rounds: Sequence[Mapping[str, Any]],
) -> None:
    """Write the card of the ranker in `artifacts/ranker`; `rounds` are the figures of each, as JSON."""
    spec = context.spec
    systems = result.systems if result else {}
    adversarial = spec.rounds.adversarial
    steps = adversarial.ranker.steps_per_round if adversarial else 0
    card = RankerCard(
        name=spec.name,
        license=spec.export.license,
        base=_shown(contract.model_id),
        facts={
            "data": f"{dataset.name}, {len(dataset.documents)} documents",
            "rounds": f"{sum(figures['round'] >= 0 for figures in rounds)} of {steps} steps each, "
            f"{spec.training.candidates_per_query - 1} negatives a query",
            "longest pair": f"{contract.max_length} tokens",
            "score contract before the rounds": contract.fingerprint,
        },
        before=systems.get("ranker_before", {}),
        after=systems.get("teacher_rerank", {}),
        round_titles=ROUND_COLUMNS,
        rounds=[round_cells(figures) for figures in rounds],
    )
    (context.artifacts / "ranker" / "README.md").write_text(ranker_card(card), encoding="utf-8")


def _measured(
    context: JobContext, dataset: Dataset, test: HeldOut, trained: EmbeddedCorpus, float32: PerQuery
) -> tuple[PrecisionResult, ...]:
    texts = [dataset.query_text(query_id) for query_id in test.queries]
    device = trained.encoder.device
    return measure_precisions(
        trained.encoder.encode(texts, "query"),
        trained.documents,
        query_ids=test.queries,
        doc_ids=dataset.documents["doc_id"].to_pylist(),
        qrels=test.qrels,
        float32=float32,
        precisions=context.spec.export.precisions,
        search=lambda queries, documents, top_k: top_k_inner_product(queries, documents, top_k, device=device),
        depth=RUN_DEPTH,
    )


def _card_facts(
    context: JobContext,
    student: DualEncoder,
    dataset: Dataset,
    contract: ScoreContract,
    *,
    result: EvaluationResult | None,
    precisions: tuple[PrecisionResult, ...],
) -> CardFacts:
    spec = context.spec
    base = spec.student.model.id
    on_hub = not base.startswith(("package:", ".", "/", "~")) and not any(
        (root / base).is_dir() for root in context.model_roots
    )
    training = spec.training.model_dump(mode="json", exclude_none=True, exclude={"objective"})
    return CardFacts(
        name=spec.name,
        base_model=_shown(base),
        base_model_on_hub=on_hub,
        license=spec.export.license,
        form=_form(student),
        data=_data(context, dataset),
        teacher={
            "model": _shown(contract.model_id),
            "computed": f"{contract.backend} {contract.dtype}, {contract.max_length} tokens",
            "fine-tuned first": "on the labelled queries" if spec.teacher.train else "no",
            **({"learned beside the student": f"in {spec.rounds.count} rounds"} if contract.owner else {}),
            "score contract": f"{contract.fingerprint}{', before the rounds' if contract.owner else ''}",
        },
        objective={
            term.name: term.model_dump(mode="json", exclude={"name"}, exclude_none=True)
            for term in spec.training.objective
        },
        training={"seed": spec.seed, "rounds": spec.rounds.model_dump(mode="json", exclude_none=True), **training},
        summary=summary_sentences(result) if result else [],
        results=_results(result) if result else None,
        precisions=_precisions(result, precisions, student.dimension) if result and precisions else None,
        rescored_from=RESCORE_MULTIPLIER,
        matryoshka=spec.student.matryoshka.dimensions if spec.student.matryoshka else (),
        formats=spec.export.formats,
        has_int8_ranges="int8" in spec.export.precisions,
        normalized=spec.student.normalize,
        versions={name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
    )


def _shown(model_id: str) -> str:
    """A model's name without this machine's folders."""
    return model_id.rstrip("/").rsplit("/", 1)[-1] if model_id.startswith((".", "/", "~")) else model_id


def _form(student: DualEncoder) -> dict[str, str]:
    spec = student.spec
    form = {
        "layers": "all of the base model's" if spec.num_layers is None else f"the first {spec.num_layers}",
        "pooling": spec.pooling.replace("_", " "),
        "dimensions": str(student.dimension),
        "norm": "unit length (cosine)" if spec.normalize else "as it comes (dot product)",
        "longest text": f"{spec.max_length} tokens",
    }
    if spec.heads:
        form["heads"] = f"two in training, served {spec.heads.serve}"
    if spec.projection:
        form["projection"] = f"{student.hidden_size} to {spec.projection} dimensions, trained"
    prompts = {"query prompt": spec.query_prompt, "document prompt": spec.document_prompt}
    return form | {name: prompt for name, prompt in prompts.items() if prompt}


def _data(context: JobContext, dataset: Dataset) -> dict[str, str]:
    spec = context.spec.dataset
    splits = {"training": spec.train_split, "development": spec.dev_split, "test": spec.test_split}
    named = {purpose: split for purpose, split in splits.items() if split}
    counts = {
        f"{purpose} split": f"{split}, {len(dataset.labelled_queries(split))} labelled queries"
        for purpose, split in named.items()
    }
    unlabelled = len(dataset.unlabelled_queries(*named.values())) if spec.unlabelled.use else 0
    if spec.unlabelled.max_queries is not None:
        unlabelled = min(unlabelled, spec.unlabelled.max_queries)
    return {
        "name": dataset.name,
        "documents": str(len(dataset.documents)),
        **counts,
        "unlabelled queries": str(unlabelled),
        "fingerprint": dataset.fingerprint,
    }


def _results(result: EvaluationResult) -> Table:
    measures = list(result.systems["student_after"])
    rows = [
        [LABELS[name], *(f"{values[measure]:.3f}" for measure in measures)] for name, values in result.systems.items()
    ]
    return Table(["", *measures], rows)


def _precisions(result: EvaluationResult, precisions: tuple[PrecisionResult, ...], dimension: int) -> Table:
    float32 = result.systems["student_after"]
    shown = [MAIN_MEASURE, *(name for name in float32 if name.startswith("R@"))]
    rows = [["float32", str(4 * dimension), *_flat((f"{float32[name]:.3f}", "") for name in shown)]]
    for found in precisions:
        cells = _flat((f"{found.measures[name]:.3f}", signed(found.loss[name])) for name in shown)
        rows.append([_SEARCHES[found.search], str(found.bytes_per_embedding), *cells])
    return Table(["embeddings", "bytes", *_flat((name, "loss") for name in shown)], rows)


def _flat(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [cell for pair in pairs for cell in pair]
