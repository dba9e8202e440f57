"""One whole job: data -> candidates -> teacher -> rounds -> evaluation -> a student folder and a report.

Enters: a spec, folders, and what differs between a laptop and a cluster (where a teacher is hosted, where a side task
runs, who is told). Leaves: `artifacts/student` (loads as a `SentenceTransformer`; with its model card and whatever else
`export` asks for), `artifacts/metrics.json`, `artifacts/report.html`, and the result. `dualdistill run` and the
service's driver both call `run_job`.
"""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.candidates.file import CandidatesFile
from pipelines.candidates.miner import EmbeddedCorpus, embed_corpus
from pipelines.comparison import bm25_run, pair_scores, rerank_run, student_run
from pipelines.control import ControlTask, run_control
from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.evaluation.metrics import PerQuery, evaluate
from pipelines.evaluation.precision import PrecisionResult
from pipelines.evaluation.report import write_report
from pipelines.evaluation.result import EvaluationResult, summarise
from pipelines.job_context import JobContext
from pipelines.job_teacher import job_teacher
from pipelines.model_files import resolve_model
from pipelines.preparation import (
    DevInputs,
    HeldOut,
    hold_to_inputs,
    input_fingerprint,
    job_miner,
    job_student,
    job_tokens,
    labelled_candidates,
    require_queries_fit,
    warm_start_file,
)
from pipelines.publishing import precision_facts, publish_ranker, publish_student, write_ranker_card
from pipelines.queries import training_queries
from pipelines.ranked.schema import BEFORE_ROUND
from pipelines.ranked.table import RankedLists, ranked_lists_location
from pipelines.rounds.adversarial import RankerStart, run_adversarial_rounds
from pipelines.rounds.distillation import run_rounds
from pipelines.rounds.one_round import RoundInputs
from pipelines.spec import DistillationSpec
from pipelines.student.formats import require_formats
from pipelines.student.model import DualEncoder
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import RankerScorer
from pipelines.training.fitting import require_fitting
from pipelines.training.metric_loggers import require_loggers
from pipelines.whole_files import write_json

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["run_job"]


def run_job(context: JobContext) -> dict[str, Any]:
    """Run the job to its end, from wherever an earlier attempt left it.

    Returns:
        The result as plain JSON: `EvaluationResult` fields under `evaluation` (null without a test split), and facts.

    Raises:
        PipelineError: with a message for the user; anything else is a bug.
    """
    started = time.monotonic()
    spec, journal = context.spec, context.journal
    for folder in (context.work, context.artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    require_formats(spec.export.formats)
    require_loggers(spec.training.metrics.loggers)
    journal.phase("mining")
    dataset = _dataset(context)
    student_folder = resolve_model(spec.student.model.id, spec.student.model.revision, roots=context.model_roots)
    student = job_student(context, dataset, student_folder)
    require_fitting(student, spec.training.objective)
    miner = job_miner(context, dataset)
    untrained = embed_corpus(student, dataset, path=context.work / "embeddings" / "untrained.npy")
    test = HeldOut.of(context, dataset, miner, untrained)
    dev = DevInputs.of(context, dataset, miner, untrained)
    labelled = labelled_candidates(context, dataset, miner, untrained)
    control = _start_control(context, test, labelled, student_folder)

    journal.phase("teacher_training")
    teacher_folder, contract = job_teacher(context, dataset, labelled)
    per_query: dict[str, PerQuery] = {}
    if test:
        per_query["bm25"] = evaluate(test.qrels, bm25_run(dataset, test.queries, _bm25(spec)))
        per_query["student_before"] = evaluate(test.qrels, student_run(untrained, dataset, test.queries))

    journal.phase("tokenizing")
    tokens = job_tokens(context, dataset, teacher_folder, contract)

    journal.phase("scoring_and_training")
    lists = RankedLists(
        ranked_lists_location(
            context.lists_root, dataset_fingerprint=dataset.fingerprint, contract_fingerprint=contract.fingerprint
        ),
        contract,
        dataset_fingerprint=dataset.fingerprint,
    )
    with context.host.host(teacher_folder, contract) as scorer:
        rounds = RoundInputs(
            job_id=context.job_id,
            spec=spec,
            dataset=dataset,
            tokens=tokens,
            miner=miner,
            scorer=scorer,
            lists=lists,
            work=context.work,
            journal=journal,
            untrained=untrained,
            evaluation_candidates=test.to_rerank if test else None,
            dev=dev.measured if dev else None,
            dev_candidates=dev.candidates if dev and spec.rounds.mode == "adversarial" else None,
            dataset_folder=context.dataset_folder,
            student_folder=student_folder,
            launcher=context.launcher,
            metrics=context.metrics,
            sinks=context.metric_sinks,
        )
        student, played = _run_rounds(context, rounds, student, teacher_folder, scorer)

    journal.phase("evaluating")
    facts = _facts(dataset, spec, contract)
    result: EvaluationResult | None = None
    trained = _embedded(context, student, dataset) if test or "int8" in spec.export.precisions else None
    if test and trained:
        per_query["student_after"] = evaluate(test.qrels, student_run(trained, dataset, test.queries))
        pairs = _rerank(context, lists, test, per_query)
        if control:
            per_query["label_only"] = control.result()
        result = summarise(per_query, num_documents=len(dataset.documents))

    journal.phase("publishing")
    precisions = publish_student(
        context,
        student,
        dataset,
        contract,
        trained=trained,
        test=test,
        float32=per_query.get("student_after"),
        result=result,
    )
    if played:
        write_ranker_card(context, dataset, contract, result=result, rounds=played["rounds"])
    wall_time = f"{(time.monotonic() - started) / 60:.1f} minutes"
    facts |= precision_facts(precisions) | {"wall time of this attempt": wall_time}
    if test and trained and result:
        _report(context, dataset, trained, result, per_query, pairs, precisions, facts, played)
    shutil.rmtree(context.work / "embeddings", ignore_errors=True)
    return {"evaluation": result.to_dict() if result else None, "facts": facts} | played


def _dataset(context: JobContext) -> Dataset:
    """The job's data, which fit its teacher and are what an earlier attempt read."""
    spec = context.spec
    dataset = load_dataset(spec.dataset, context.dataset_folder)
    hold_to_inputs(context.work / "inputs.txt", input_fingerprint(spec, dataset, context.model_roots))
    require_queries_fit(context, dataset)
    return dataset


def _run_rounds(
    context: JobContext, rounds: RoundInputs, student: DualEncoder, teacher_folder: Path, scorer: RankerScorer
) -> tuple[DualEncoder, dict[str, Any]]:
    """The student after all rounds; a ranker that learned beside it is in `artifacts/ranker` then.

    Returns:
        The student, and of adversarial rounds what each came to, as JSON (`rounds`), and the weights of each
        ranker version (`ranker_versions`).
    """
    if context.spec.rounds.mode == "distillation":
        return run_rounds(rounds, student), {}
    start = RankerStart(teacher_folder, scorer.contract)
    outcome = run_adversarial_rounds(rounds, student, start, scorer.publish)
    publish_ranker(outcome.ranker, context.artifacts / "ranker")
    figures = [*([outcome.before] if outcome.before else []), *(state.figures for state in outcome.rounds)]
    hashes = {0: start.contract.weights_hash} | {each.weights_version: each.weights_hash for each in outcome.rounds}
    return outcome.student, {"rounds": [each.to_dict() for each in figures], "ranker_versions": hashes}


def _rerank(
    context: JobContext, lists: RankedLists, test: HeldOut, per_query: dict[str, PerQuery]
) -> list[tuple[str, str, float]]:
    """Measure the teacher's re-ranking, of a ranker before its rounds as well; returns the teacher's scored pairs."""
    run, pairs = rerank_run(lists, context.job_id, test.first_stage)
    per_query["teacher_rerank"] = evaluate(test.qrels, run)
    if context.spec.rounds.mode == "adversarial":
        earlier, _ = rerank_run(lists, context.job_id, test.first_stage, round_number=BEFORE_ROUND)
        per_query["ranker_before"] = evaluate(test.qrels, earlier)
    return pairs


def _report(
    context: JobContext,
    dataset: Dataset,
    trained: EmbeddedCorpus,
    result: EvaluationResult,
    per_query: dict[str, PerQuery],
    pairs: list[tuple[str, str, float]],
    precisions: tuple[PrecisionResult, ...],
    facts: dict[str, str],
    played: dict[str, Any],
) -> None:
    """Write the report, and what it was made of as JSON."""
    write_report(
        context.artifacts / "report.html",
        job_name=context.spec.name,
        result=result,
        per_query={system: measures["nDCG@10"] for system, measures in per_query.items()},
        learning_curve=_learning_curve(context.work / "learning_curve.jsonl"),
        teacher_scores=np.array([logit for _, _, logit in pairs], dtype=np.float32),
        student_scores=pair_scores(trained, dataset, [(query_id, doc_id) for query_id, doc_id, _ in pairs]),
        facts=facts,
        rounds=played.get("rounds", ()),
    )
    write_json(
        context.artifacts / "metrics.json",
        {
            "evaluation": result.to_dict(),
            "per_query": per_query,
            "precisions": [found.to_dict() for found in precisions],
        }
        | played,
    )


def _embedded(context: JobContext, student: DualEncoder, dataset: Dataset) -> EmbeddedCorpus:
    return embed_corpus(student, dataset, path=context.work / "embeddings" / "trained.npy")


def _start_control(
    context: JobContext, test: HeldOut | None, labelled: CandidatesFile | None, student_folder: Path
) -> "Future[PerQuery] | None":
    if not context.spec.evaluation.label_only_control or test is None or labelled is None:
        return None
    context.journal.event("control.started", "training the label-only control beside the teacher")
    return context.side_task(
        run_control,
        ControlTask(
            spec=context.spec,
            dataset_folder=context.dataset_folder,
            student_folder=student_folder,
            labelled_candidates=labelled.path,
            test_queries=test.queries,
            warm_start=warm_start_file(context),
            num_cpus=context.side_task_cpus,
            output=context.work / "control.json",
        ),
    )


def _bm25(spec: DistillationSpec) -> Any:
    return spec.candidates.bm25 or type(spec.candidates).model_fields["bm25"].default


def _facts(dataset: Dataset, spec: DistillationSpec, contract: ScoreContract) -> dict[str, str]:
    queries = training_queries(spec, dataset)
    labelled = len(dataset.labelled_queries(spec.dataset.train_split)) if spec.dataset.train_split else 0
    return {
        "data set": f"{dataset.name}: {len(dataset.documents)} documents",
        "training queries": f"{labelled} labelled, {len(queries) - labelled} unlabelled",
        "teacher": f"{contract.model_id}, {contract.backend} {contract.dtype}, {contract.max_length} tokens",
        "score contract": contract.fingerprint,
        **({"ranker": f"learned in {spec.rounds.count} rounds; version 0 has that contract"} if contract.owner else {}),
        "objective": " + ".join(f"{term.weight:g} {term.name}" for term in spec.training.objective),
        "seed": str(spec.seed),
        "torch threads per process": str(torch.get_num_threads()),
    }


def _learning_curve(path: Path) -> list[dict[str, Any]]:
    """One point per (round, step); a step that was repeated after a crash counts once, the last time."""
    points: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        points[point["round"], point["step"]] = point
    return [points[key] for key in sorted(points)]
