"""Training workers on the cluster, by Ray Train: placed by their resources, started again when a node is lost.

Enters: a `GroupTask`. Leaves: what the task leaves in the job's folder. Ray Train makes the process group (NCCL
where workers book GPUs, else gloo) and starts it anew after a failure, with fewer workers where the spec allows that;
the loop finds its own newest checkpoint, whose stream position is the same for any number of workers.
"""

import threading
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipelines.journal import Journal
from pipelines.spec import WorkersSpec
from pipelines.training.group_task import GroupTask, run_task

__all__ = ["RayWorkers", "scaling"]

_PLACED_WITHIN_S = 30.0


class RayWorkers:
    """Launches `TorchTrainer`s; needs a connection to Ray."""

    def launch(self, task: GroupTask, journal: Journal) -> "Future[None]":
        """See `WorkerLauncher`."""
        settings = task.workers
        done: Future[None] = Future()

        def fit() -> None:
            try:
                _trainer(task, settings).fit()
                done.set_result(None)
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
                done.set_exception(error)

        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        _say_if_nobody_comes(task, settings, journal, done)
        return done


def _trainer(task: GroupTask, settings: WorkersSpec) -> Any:
    return TorchTrainer(
        _worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_worker > 0 else "gloo"),
        scaling_config=scaling(settings),
        run_config=RunConfig(
            name=f"{task.name}-{uuid4().hex[:6]}",
            storage_path=str(task.work / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )


def scaling(settings: WorkersSpec) -> ScalingConfig:
    """How many workers, of what; a pair of numbers makes Ray Train go on with fewer when a node is lost."""
    on_gpu = settings.gpus_per_worker > 0
    resources = {"CPU": settings.cpus_per_worker} | ({"GPU": settings.gpus_per_worker} if on_gpu else {})
    fewest = settings.min_count or settings.count
    return ScalingConfig(
        num_workers=settings.count if fewest == settings.count else (fewest, settings.count),
        use_gpu=on_gpu,
        resources_per_worker=resources,
    )


def _worker(config: dict[str, Any]) -> None:
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    run_task(config["task"])


def _say_if_nobody_comes(task: GroupTask, settings: WorkersSpec, journal: Journal, done: "Future[None]") -> None:
    """A cluster without room makes Ray Train wait without end; the user should know what for."""

    def look() -> None:
        if not done.done() and not (task.channel / "messages.jsonl").is_file():
            journal.event(
                "training.workers.waiting",
                f"no word yet from {settings.count} training workers; each needs {settings.cpus_per_worker:g} CPUs and "
                f"{settings.gpus_per_worker:g} GPUs that nobody else has booked",
            )

    timer = threading.Timer(_PLACED_WITHIN_S, look)
    timer.daemon = True
    timer.start()
    done.add_done_callback(lambda _: timer.cancel())
