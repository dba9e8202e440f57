"""A round's training as one self-contained task: what each of several workers is given.

Enters: a `TrainingTask`, nothing that does not pickle, in a process that belongs to a process group. Leaves: the
trained step in `task.snapshot`, written by the first worker. Whoever starts workers (Ray Train in the service,
processes of this machine in `local_workers`) calls `run_task` in each.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from pipelines.corpus.dataset import load_dataset
from pipelines.devices import resolve_device, seed_everything, use_threads
from pipelines.errors import Cancelled, PipelineError
from pipelines.pretrained import quiet_loading
from pipelines.ranked.table import RankedLists
from pipelines.spec import DistillationSpec
from pipelines.student.model import load_student
from pipelines.training.dev_set import DevSet
from pipelines.training.fitting import needs_previous_student
from pipelines.training.run_metrics import run_loggers
from pipelines.training.student_step import StudentStep
from pipelines.training.student_stream import TrainingInputs
from pipelines.training.student_training import new_step, train_student
from pipelines.training.worker_channel import WorkerSide
from pipelines.training.workers import Workers

__all__ = ["TrainingTask", "run_task", "save_step"]


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What a worker needs. Folders must be readable where it runs, `work` writable as well."""

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

    @property
    def channel(self) -> Path:
        """Where the job and its workers talk."""
        return self.work / "workers" / f"round-{self.number}"


def run_task(task: TrainingTask) -> None:
    """Train as one of torch's default process group.

    An error that another attempt would meet again is told to the job and ends every worker without a failure, so that
    nobody starts them again; any other is raised.
    """
    workers = Workers.here()
    channel = WorkerSide(task.channel, speaks=workers.leads)
    quiet_loading()
    if task.spec.training.workers:
        use_threads(task.spec.training.workers.cpus_per_worker)
    try:
        step = _train(task, channel, workers)
    except Cancelled:
        return
    except PipelineError as error:
        channel.failed(error)
        return
    if workers.leads:
        save_step(step, task.snapshot)


def _train(task: TrainingTask, channel: WorkerSide, workers: Workers) -> StudentStep:
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
            workers=workers,
        ),
        step,
    )
    return step


def save_step(step: StudentStep, path: Path) -> None:
    """Write everything a step has learned, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    save_file({name: value.contiguous().clone() for name, value in step.state_dict().items()}, scratch)
    scratch.rename(path)
