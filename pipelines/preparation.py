"""What a job has ready before its first round: test set, candidate sources, labelled candidates, the teacher.

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
from pipelines.spec import DistillationSpec, TeacherSpec
from pipelines.student.model import DualEncoder, load_student
from pipelines.teacher.backends.choice import resolve_backend
from pipelines.teacher.contract import ONE_LABEL, ScoreContract, answers_head, contract_of
from pipelines.teacher.corpus_tokens import CorpusTokens, corpus_tokens
from pipelines.training.dev_set import DevSet
from pipelines.training.settings import encoding_settings
from pipelines.training.teacher import learn_teacher, teacher_key
from pipelines.training.warm_start import warm_start

__all__ = [
    "HeldOut",
    "hold_to_inputs",
    "input_fingerprint",
    "job_dev_set",
    "job_miner",
    "job_student",
    "job_teacher",
    "job_tokens",
    "labelled_candidates",
    "teacher_contract",
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
        scratch = kept.with_suffix(".partial")
        save_file({name: value.contiguous().clone() for name, value in student.backbone.state_dict().items()}, scratch)
        scratch.rename(kept)
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


def job_dev_set(context: JobContext, dataset: Dataset, miner: Miner, corpus: EmbeddedCorpus) -> DevSet | None:
    """The dev queries and the pool they are searched in; None where the spec asks for no dev measure."""
    settings, split = context.spec.evaluation.dev, context.spec.dataset.dev_split
    if settings is None or split is None:
        return None
    path = context.work / "dev.json"
    if not path.is_file():
        queries = dataset.labelled_queries(split)[: settings.max_queries]
        judged = dataset.judged(split)
        candidates = miner.mine(queries, corpus=corpus, judged={}, depth=settings.pool_depth)
        DevSet.of({query_id: judged[query_id] for query_id in queries}, candidates).save(path)
    return DevSet.load(path)


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


def job_teacher(context: JobContext, dataset: Dataset, labelled: CandidatesFile | None) -> tuple[Path, ScoreContract]:
    """The folder of the job's teacher, fine-tuned first if the spec asks for it, and the contract of its scores."""
    teacher = context.spec.teacher
    folder = resolve_model(teacher.model.id, teacher.model.revision, roots=context.model_roots)
    model_id, revision = teacher.model.id, teacher.model.revision
    if teacher.train and labelled is not None:
        key = teacher_key(folder, dataset, labelled, teacher, seed=context.spec.seed)
        folder = learn_teacher(
            folder,
            dataset,
            labelled,
            teacher,
            seed=context.spec.seed,
            folder=context.root / "teachers",
            journal=context.journal,
        )
        # For people, who meet it in the pool's name: what it was, then which training.
        model_id, revision = f"trained/{model_id.rstrip('/').rsplit('/', 1)[-1]}-{key[:8]}", None
    contract = teacher_contract(
        teacher, folder, model_id=model_id, revision=revision, device_type=context.host.device_type
    )
    return folder, contract


def teacher_contract(
    teacher: TeacherSpec, folder: Path, *, model_id: str, revision: str | None, device_type: str
) -> ScoreContract:
    """The contract of the scores that the teacher in `folder` gives, as the spec asks for them.

    Raises:
        ModelError: backend, dtype and `device_type` (`cuda` or `cpu`) exclude each other.
    """
    backend, dtype = resolve_backend(teacher.backend, teacher.dtype, device_type=device_type, folder=folder)
    return contract_of(
        folder,
        model_id=model_id,
        revision=revision,
        max_length=teacher.max_length,
        dtype=dtype,
        template=teacher.prompt,
        truncation=teacher.truncation,
        head=answers_head(teacher.answers.positive, teacher.answers.negative) if teacher.answers else ONE_LABEL,
        backend=backend,
    )


def job_tokens(context: JobContext, dataset: Dataset, folder: Path, contract: ScoreContract) -> CorpusTokens:
    """The data set as the teacher's tokenizer reads it: taken from the root's token cache, or put there first."""
    return corpus_tokens(
        context.root / "token_cache", dataset, folder, template=contract.template, journal=context.journal
    )
