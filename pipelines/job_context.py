"""What a job needs to be told beyond its spec: where things are, who hosts a teacher, who listens.

Enters: choices of whoever runs the job (a laptop, a driver on a cluster). Leaves: one frozen `JobContext`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipelines.control import ControlTask
from pipelines.evaluation.metrics import PerQuery
from pipelines.journal import Journal
from pipelines.spec import DistillationSpec
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import RankerScorer
from pipelines.training.local_workers import LocalWorkers
from pipelines.training.metric_loggers import MetricLogger
from pipelines.training.worker_group import WorkerLauncher

__all__ = ["JobContext", "SideTask", "TeacherHost"]


class TeacherHost(Protocol):
    """Somewhere a teacher folder becomes a `PairScorer`: this process, or a pool of replicas."""

    @property
    def device_type(self) -> str:
        """`cuda` or `cpu`: what the teacher will compute on; decides what dtype `auto` means."""
        ...

    def host(self, folder: Path, contract: ScoreContract) -> AbstractContextManager[RankerScorer]:
        """Serve the teacher in `folder` while the context is open; its weights may be replaced meanwhile."""
        ...


class SideTask(Protocol):
    """Runs the label-only control beside the main work: a process pool's `submit`, or a Ray task."""

    def __call__(self, function: Callable[[ControlTask], PerQuery], task: ControlTask, /) -> Future[PerQuery]:
        """Start `function(task)` elsewhere."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """Everything about a job that is not science."""

    job_id: str
    spec: DistillationSpec
    root: Path
    dataset_folder: Path
    model_roots: tuple[Path, ...]
    host: TeacherHost
    side_task: SideTask
    side_task_cpus: float
    journal: Journal
    lists_url: str | None = None
    """Where ranked lists are kept, a folder or an s3:// URL; None is below `root`."""
    launcher: WorkerLauncher = field(default_factory=LocalWorkers)
    """Starts training workers where the spec asks for some: on this machine, or on a cluster."""
    metric_sinks: tuple[MetricLogger, ...] = ()
    """Told training's numbers beside the loggers that the spec names."""

    @property
    def lists_root(self) -> str:
        """Below which all tables of ranked lists lie."""
        return self.lists_url or str(self.root)

    @property
    def work(self) -> Path:
        """What the job needs to go on after a crash."""
        return self.root / "jobs" / self.job_id / "work"

    @property
    def metrics(self) -> Path:
        """Training's curves; `tensorboard --logdir` of any folder above shows them."""
        return self.root / "jobs" / self.job_id / "metrics"

    @property
    def artifacts(self) -> Path:
        """What the user takes home."""
        return self.root / "jobs" / self.job_id / "artifacts"
