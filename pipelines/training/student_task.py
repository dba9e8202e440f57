"""A round's training of the student, by several workers.

Enters: a `StudentTask`, in each worker. Leaves: the trained step in `task.snapshot`, written by the first one.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from pipelines.corpus.dataset import load_dataset
from pipelines.devices import resolve_device, seed_everything
from pipelines.ranked.table import RankedLists
from pipelines.spec import DistillationSpec, WorkersSpec
from pipelines.student.model import load_student
from pipelines.training.dev_set import DevSet
from pipelines.training.fitting import needs_previous_student
from pipelines.training.run_metrics import run_loggers
from pipelines.training.snapshots import EarlySnapshot, save_step
from pipelines.training.student_step import StudentStep
from pipelines.training.student_stream import TrainingInputs
from pipelines.training.student_training import new_step, train_student
from pipelines.training.worker_channel import WorkerSide
from pipelines.training.workers import Workers

__all__ = ["StudentTask"]


@dataclass(frozen=True, kw_only=True)
class StudentTask:
    """See `GroupTask`."""

    job_id: str
    spec: DistillationSpec
    dataset_folder: Path
    student_folder: Path
    """The checkpoint that the job's student began as."""
    lists: str
    """Location of the table."""
    work: Path
    """The job's own folder."""
    number: int
    """Of the round."""
    num_rows: int
    before: Path
    """What the round before left, or the step as it began."""
    snapshot: Path
    """Where this round's step goes."""
    queries: tuple[str, ...]
    """All that the job may train on."""
    steps_before: int
    """Of earlier rounds."""
    metrics: Path
    """Where curves go."""
    early: EarlySnapshot | None = None
    """Also keep the step as it is before the round's end."""

    @property
    def name(self) -> str:
        """See `GroupTask`."""
        return f"{self.spec.name}-{self.job_id}-round-{self.number}"

    @property
    def channel(self) -> Path:
        """See `GroupTask`."""
        return self.work / "workers" / f"round-{self.number}"

    @property
    def workers(self) -> WorkersSpec:
        """See `GroupTask`."""
        if self.spec.training.workers is None:
            raise ValueError("the spec names no training.workers")
        return self.spec.training.workers

    def train(self, channel: WorkerSide, workers: Workers) -> None:
        """See `GroupTask`."""
        step = _train(self, channel, workers)
        if workers.leads:
            save_step(step, self.snapshot)


def _train(task: StudentTask, channel: WorkerSide, workers: Workers) -> StudentStep:
    spec = task.spec
    dataset = load_dataset(spec.dataset, task.dataset_folder)
    seed_everything(spec.seed)  # the job's own process did the same before it loaded its student
    student = load_student(task.student_folder, spec.student, dropout=spec.training.dropout, device=resolve_device())
    previous = None
    if needs_previous_student(spec.training.objective):
        previous = load_student(task.student_folder, spec.student, dropout=0.0, device=resolve_device()).eval()
    step = new_step(student, spec, previous=previous, queries=task.queries, workers=workers)
    step.load_state_dict(load_file(task.before))
    dev = task.work / "dev.json"
    train_student(
        TrainingInputs(
            job_id=task.job_id,
            spec=spec,
            dataset=dataset,
            lists=RankedLists.existing(task.lists),
            work=task.work,
            number=task.number,
            num_rows=task.num_rows,
            dev=DevSet.load(dev) if dev.is_file() else None,
            journal=channel,
            wait=channel.wait_for_lists,
            watch=channel.check_cancelled,
            loggers=(*run_loggers(spec, task.metrics, task.job_id, channel), channel) if workers.leads else (),
            steps_before=task.steps_before,
            early=task.early,
            workers=workers,
        ),
        step,
    )
    return step
