"""Workers as processes of this machine: `dualdistill run` on a box with several GPUs, and tests.

Enters: a `GroupTask`. Leaves: the same as workers on a cluster leave. One worker per GPU with NCCL where there are
GPUs, else gloo on CPUs. When one dies all are ended and started again from the newest checkpoint, as often as the spec
allows.
"""

import multiprocessing
import tempfile
import threading
from concurrent.futures import Future
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from pipelines.errors import PipelineError
from pipelines.journal import Journal
from pipelines.training.group_task import GroupTask, run_task

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

__all__ = ["LocalWorkers"]

_LIBRARIES = (
    "deltalake",
    "pandas",
    "pipelines.training.student_step",
    "torch.distributed.tensor",
    "transformers.models.auto.modeling_auto",
)
"""Loaded once, by the server that workers are forked from: most of what a group's start costs. None touches a GPU."""


class LocalWorkers:
    """Launches processes with torch's file rendezvous: no port is opened to anybody but the workers."""

    def launch(self, task: GroupTask, journal: Journal) -> "Future[None]":
        """See `WorkerLauncher`."""
        settings = task.workers
        done: Future[None] = Future()

        def supervise() -> None:
            try:
                for failure in range(settings.max_failures + 1):
                    codes = _one_group(task, settings.count)
                    if not any(codes):
                        done.set_result(None)
                        return
                    journal.event(
                        "training.workers.failed",
                        f"training workers ended with {codes}; {settings.max_failures - failure} failures are left",
                        codes=codes,
                    )
                raise PipelineError(f"training workers failed {settings.max_failures + 1} times (workers.max_failures)")
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
                done.set_exception(error)

        threading.Thread(target=supervise, name="local-workers", daemon=True).start()
        return done


def _one_group(task: GroupTask, count: int) -> list[int]:
    """Run the workers once; their exit codes. The first that fails ends the others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LIBRARIES))
    with tempfile.TemporaryDirectory(prefix="dualdistill-workers-") as folder:
        rendezvous = Path(folder) / "rendezvous"
        workers: list[ForkServerProcess] = [
            context.Process(target=_work, args=(task, rank, count, rendezvous), daemon=True) for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        left = list(workers)
        while left:
            wait_for([worker.sentinel for worker in left])
            if any(worker.exitcode for worker in left):
                for worker in left:
                    worker.kill()
            left = [worker for worker in left if worker.is_alive()]
        for worker in workers:
            worker.join()
        return [int(worker.exitcode or 0) for worker in workers]


def _work(task: GroupTask, rank: int, count: int, rendezvous: Path) -> None:
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(rank % gpus)
    # NCCL wants a GPU for each worker.
    backend = "nccl" if gpus >= count else "gloo"
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    try:
        run_task(task)
    finally:
        dist.destroy_process_group()
