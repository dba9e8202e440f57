"""The teacher that a job scores with: the model it names, or what that becomes on the labelled queries.

Enters: a `JobContext`, labelled candidates. Leaves: a folder with a cross-encoder, and the contract of its scores. It
is fine-tuned in the job's own process or, by the same loop, in workers.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines.candidates.file import CandidatesFile
from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.job_context import JobContext
from pipelines.model_files import resolve_model
from pipelines.spec import DistillationSpec, TeacherSpec, WorkersSpec
from pipelines.teacher.backends.choice import resolve_backend
from pipelines.teacher.contract import ONE_LABEL, ScoreContract, answers_head, contract_of
from pipelines.training.teacher import learn_teacher, teacher_key, train_teacher
from pipelines.training.worker_channel import WorkerSide
from pipelines.training.worker_group import train_with_workers
from pipelines.training.workers import Workers

__all__ = ["TeacherTask", "job_teacher", "teacher_contract"]


@dataclass(frozen=True, kw_only=True)
class TeacherTask:
    """Fine-tunes a teacher. See `GroupTask`."""

    job_id: str
    spec: DistillationSpec
    base: Path
    """The checkpoint that is fine-tuned."""
    dataset_folder: Path
    candidates: Path
    """Of the labelled queries, with judgements."""
    work: Path
    """The teacher's own folder, which other jobs share."""

    @property
    def name(self) -> str:
        """See `GroupTask`."""
        return f"{self.spec.name}-{self.job_id}-teacher"

    @property
    def channel(self) -> Path:
        """See `GroupTask`."""
        return self.work / "workers"

    @property
    def workers(self) -> WorkersSpec:
        """See `GroupTask`."""
        if self.spec.teacher.train is None or self.spec.teacher.train.workers is None:
            raise ValueError("the spec names no teacher.train.workers")
        return self.spec.teacher.train.workers

    def train(self, channel: WorkerSide, workers: Workers) -> None:
        """See `GroupTask`."""
        train_teacher(
            self.base,
            load_dataset(self.spec.dataset, self.dataset_folder),
            CandidatesFile(self.candidates),
            self.spec.teacher,
            seed=self.spec.seed,
            work=self.work,
            journal=channel,
            workers=workers,
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
            together=partial(_teacher_together, context, folder, labelled) if teacher.train.workers else None,
        )
        # For people, who meet it in the pool's name: what it was, then which training.
        model_id, revision = f"trained/{model_id.rstrip('/').rsplit('/', 1)[-1]}-{key[:8]}", None
    contract = teacher_contract(
        teacher, folder, model_id=model_id, revision=revision, device_type=context.host.device_type
    )
    if context.spec.rounds.mode == "adversarial":
        contract = replace(contract, owner=context.job_id)  # its pool and its lists are this job's alone
    return folder, contract


def _teacher_together(context: JobContext, base: Path, labelled: CandidatesFile, work: Path) -> None:
    task = TeacherTask(
        job_id=context.job_id,
        spec=context.spec,
        base=base,
        dataset_folder=context.dataset_folder,
        candidates=labelled.path,
        work=work,
    )
    watch = context.journal.check_cancelled
    train_with_workers(task, context.launcher, journal=context.journal, sinks=context.metric_sinks, watch=watch)


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
