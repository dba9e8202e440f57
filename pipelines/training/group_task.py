"""A piece of training as one self-contained task: what each of several workers is given.

Enters: a `GroupTask`, nothing that does not pickle, in a process that belongs to a process group. Leaves: what the task
writes. Whoever starts workers (Ray Train in the service, processes of this machine in `local_workers`) calls `run_task`
in each.
"""

from pathlib import Path
from typing import Protocol

from pipelines.devices import use_threads
from pipelines.errors import Cancelled, PipelineError
from pipelines.pretrained import quiet_loading
from pipelines.spec import WorkersSpec
from pipelines.training.worker_channel import WorkerSide
from pipelines.training.workers import Workers

__all__ = ["GroupTask", "run_task"]


class GroupTask(Protocol):
    """What workers do together. Folders must be readable where they run, `work` writable as well."""

    @property
    def name(self) -> str:
        """For people, and unique among the job's tasks."""
        ...

    @property
    def work(self) -> Path:
        """The job's own folder."""
        ...

    @property
    def workers(self) -> WorkersSpec:
        """How many, of what."""
        ...

    @property
    def channel(self) -> Path:
        """Where the job and its workers talk."""
        ...

    def train(self, channel: WorkerSide, workers: Workers) -> None:
        """Called in every worker; the first one writes what the task leaves."""
        ...


def run_task(task: GroupTask) -> None:
    """Train as one of torch's default process group.

    An error that another attempt would meet again is told to the job and ends every worker without a failure, so that
    nobody starts them again; any other is raised.
    """
    workers = Workers.here()
    channel = WorkerSide(task.channel, speaks=workers.leads)
    quiet_loading()
    use_threads(task.workers.cpus_per_worker)
    try:
        task.train(channel, workers)
    except Cancelled:
        return
    except PipelineError as error:
        channel.failed(error)
