"""What a job has ready before its first round: test set, candidate sources, labelled candidates, tokens.

Enters: a `JobContext`, its data set, the untrained student's view of the corpus. Leaves: each of those, taken from the
job's work folder when an earlier attempt left it there.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from safetensors.torch import load_file, save_file

from pipelines.candidates.file import CandidatesFile
from pipelines.candidates.miner import EmbeddedCorpus, Miner, mine_once
from pipelines.comparison import RUN_DEPTH, top_of_each
from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device, seed_everything
from pipelines.errors import CheckpointError
from pipelines.job_context import JobContext
from pipelines.model_files import resolve_model, weights_hash
from pipelines.queries import training_queries
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder, load_student
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.corpus_tokens import CorpusTokens, corpus_tokens
from pipelines.teacher.query_room import require_room
from pipelines.training.dev_set import DevSet
from pipelines.training.settings import encoding_settings
from pipelines.training.warm_start import warm_start
from pipelines.whole_files import whole_file

__all__ = [
    "DevInputs",
    "HeldOut",
    "hold_to_inputs",
    "input_fingerprint",
    "job_miner",
    "job_student",
    "job_tokens",
    "labelled_candidates",
    "require_queries_fit",
    "warm_start_file",
]


def input_fingerprint(spec: DistillationSpec, dataset: Dataset, model_roots: Sequence[Path]) -> str:
    """64 hex digits over everything a job reads: texts, judgements, and the weights of every model that it names."""
    dense = spec.candidates.dense
    models = [spec.student.model, spec.teacher.model, *([dense.encoder.model] if dense and dense.encoder else [])]
    hashes = [weights_hash(resolve_model(model.id, model.revision, roots=model_roots)) for model in models]
    parts = [dataset.fingerprint, dataset.qrels.to_pydict(), hashes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hold_to_inputs(path: Path, fingerprint: str) -> None:
    """Note what a job reads; refuse to go on with its earlier work when that has changed since.

    Raises:
        CheckpointError: candidates, scores and checkpoints of the job were made from other data or weights.
    """
    if not path.is_file():
        path.write_text(fingerprint, encoding="utf-8")
    elif (found := path.read_text(encoding="utf-8")) != fingerprint:
        raise CheckpointError(
            f"the data set or a model changed since this job began ({found[:12]}, now {fingerprint[:12]}); "
            "submit it as a new job"
        )


def require_queries_fit(context: JobContext, dataset: Dataset) -> None:
    """Hold every query that the teacher will meet to the length of its pairs, before anything is trained.

    Raises:
        DataError: one leaves no room for a passage.
    """
    spec, teacher = context.spec, context.spec.teacher
    splits = [split for split in (spec.dataset.dev_split, spec.dataset.test_split) if split]
    held_out = [query for split in splits for query in dataset.labelled_queries(split)]
    require_room(
        resolve_model(teacher.model.id, teacher.model.revision, roots=context.model_roots),
        {query: dataset.query_text(query) for query in [*training_queries(spec, dataset), *held_out]},
        template=teacher.prompt,
        max_length=teacher.max_length,
        truncation=teacher.truncation,
    )


@dataclass(frozen=True)
class HeldOut:
    """The test queries of a job and what the first stage found for them, labels unseen."""

    queries: tuple[str, ...]
    qrels: dict[str, dict[str, int]]
    first_stage: pa.Table
    """Candidates table, `RUN_DEPTH` or more a query."""
    to_rerank: pa.Table
    """The top of it, which the teacher scores."""

    @classmethod
    def of(cls, context: JobContext, dataset: Dataset, miner: Miner, corpus: EmbeddedCorpus) -> "HeldOut | None":
        """The job's held-out queries; None when it names no test split."""
        split, settings = context.spec.dataset.test_split, context.spec.evaluation
        if split is None:
            return None
        queries = tuple(dataset.labelled_queries(split)[: settings.max_queries])
        judged = dataset.judged(split)
        first_stage = mine_once(
            context.work / "candidates-test.parquet",
            lambda: miner.mine_blocks(queries, corpus=corpus, judged={}, depth=max(RUN_DEPTH, settings.rerank_depth)),
        ).read()
        qrels = {query_id: judged[query_id] for query_id in queries}
        return cls(queries, qrels, first_stage, top_of_each(first_stage, settings.rerank_depth))


def warm_start_file(context: JobContext) -> Path | None:
    """Where the backbone is kept as the warm start left it; None where the spec asks for none."""
    return context.work / "warm-start.safetensors" if context.spec.student.warm_start else None


def job_student(context: JobContext, dataset: Dataset, folder: Path) -> DualEncoder:
    """The student as the job begins with it: the checkpoint in `folder`, cut, and warmed up if the spec says so."""
    spec, journal, kept = context.spec, context.journal, warm_start_file(context)
    device = resolve_device()
    seed_everything(spec.seed)  # a checkpoint without a pooler gets a new one: the same in every run
    student = load_student(folder, spec.student, dropout=spec.training.dropout, device=device)
    if kept is None or spec.student.warm_start is None:
        return student
    if not kept.is_file():
        steps = spec.student.warm_start.steps
        encoding = encoding_settings(spec.training, device_type=device.type)
        whole = {"num_layers": None, "heads": None, "projection": None, "matryoshka": None, "warm_start": None}
        source = load_student(folder, spec.student.model_copy(update=whole), dropout=0.0, device=device)
        journal.event("warm_start.started", f"the student follows the whole encoder for {steps} steps", steps=steps)

        def on_step(step: int, loss: float) -> None:
            journal.check_cancelled()
            journal.progress(warm_start_step=step, warm_start_loss=loss)

        warm_start(
            student,
            source.backbone,
            dataset.passages(),
            spec.student.warm_start,
            seed=spec.seed,
            dtype=encoding.dtype,
            tokens_per_batch=encoding.tokens_per_micro_batch,
            on_step=on_step,
        )
        with whole_file(kept) as scratch:
            save_file(
                {name: value.contiguous().clone() for name, value in student.backbone.state_dict().items()}, scratch
            )
    student.backbone.load_state_dict(load_file(kept))
    return student


def job_miner(context: JobContext, dataset: Dataset) -> Miner:
    """The job's candidate sources; a fixed dense encoder is loaded when the spec names one."""
    dense = context.spec.candidates.dense
    encoder = None
    if dense and dense.encoder:
        folder = resolve_model(dense.encoder.model.id, dense.encoder.model.revision, roots=context.model_roots)
        encoder = load_student(folder, dense.encoder, dropout=0.0, device=resolve_device())
    return Miner(dataset, context.spec.candidates, encoder=encoder, path=context.work / "embeddings" / "fixed.npy")


@dataclass(frozen=True)
class DevInputs:
    """The dev queries of a job."""

    measured: DevSet
    """Queries and the pool in which a student is measured on them."""
    candidates: pa.Table
    """Candidates table, best first: a ranker is measured by how it re-ranks the top of it."""

    @classmethod
    def of(cls, context: JobContext, dataset: Dataset, miner: Miner, corpus: EmbeddedCorpus) -> "DevInputs | None":
        """None where the spec asks for no dev measure."""
        settings, split = context.spec.evaluation.dev, context.spec.dataset.dev_split
        if settings is None or split is None:
            return None
        queries = dataset.labelled_queries(split)[: settings.max_queries]
        candidates = mine_once(
            context.work / "candidates-dev.parquet",
            lambda: miner.mine_blocks(queries, corpus=corpus, judged={}, depth=settings.pool_depth),
        ).read()
        path = context.work / "dev.json"  # training workers read it
        if not path.is_file():
            judged = dataset.judged(split)
            DevSet.of({query_id: judged[query_id] for query_id in queries}, candidates).save(path)
        return cls(DevSet.load(path), candidates)


def labelled_candidates(
    context: JobContext, dataset: Dataset, miner: Miner, corpus: EmbeddedCorpus
) -> CandidatesFile | None:
    """Candidates of the labelled queries, positives first; None without a train split."""
    split = context.spec.dataset.train_split
    if split is None:
        return None
    return mine_once(
        context.work / "candidates-labelled.parquet",
        lambda: miner.mine_blocks(
            dataset.labelled_queries(split),
            corpus=corpus,
            judged=dataset.judged_rows(split),
            scratch=context.work / "embeddings" / "queries.npy",
        ),
    )


def job_tokens(context: JobContext, dataset: Dataset, folder: Path, contract: ScoreContract) -> CorpusTokens:
    """The data set as the teacher's tokenizer reads it: taken from the root's token cache, or put there first."""
    return corpus_tokens(
        context.root / "token_cache", dataset, folder, template=contract.template, journal=context.journal
    )
