"""Train with several workers: start them, pass on what they say, tell them what they cannot know.

Enters: a `GroupTask` and a way to start workers. Leaves: what the task leaves, or the error that ended training,
raised here as it was there.
"""

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Protocol

from pipelines import errors
from pipelines.errors import PipelineError
from pipelines.journal import Journal
from pipelines.training.group_task import GroupTask
from pipelines.training.metric_loggers import MetricLogger
from pipelines.training.worker_channel import JobSide, Message

__all__ = ["WorkerLauncher", "train_with_workers"]

_LOOK_EVERY_S = 0.2


class WorkerLauncher(Protocol):
    """Starts the workers of a task somewhere: on a cluster, or on this machine."""

    def launch(self, task: GroupTask, journal: Journal) -> "Future[None]":
        """Start `task.workers` processes that call `run_task(task)` in one process group.

        Returns:
            Done when all have ended; an exception if they failed more often than the spec allows.
        """
        ...


def train_with_workers(
    task: GroupTask,
    launcher: WorkerLauncher,
    *,
    journal: Journal,
    sinks: tuple[MetricLogger, ...],
    scoring: "Future[None] | None" = None,
    watch: Callable[[], None],
) -> None:
    """Train until the workers have ended.

    Args:
        task: what they do.
        launcher: starts the workers.
        journal: told what the first worker says.
        sinks: given its numbers.
        scoring: of the lists that they train on, where those are not all there; they are told when it is done.
        watch: called now and then; what it raises (cancelled, scoring failed) ends the workers.

    Raises:
        PipelineError: what a worker raised; or whatever `watch` and the launcher raise.
    """
    channel = JobSide(task.channel)
    running = launcher.launch(task, journal)
    told = False
    failure: PipelineError | None = None
    try:
        while True:
            ended = running.done()  # before the messages: none is left behind
            for message in channel.messages():
                failure = _pass_on(message, journal, sinks) or failure
            if ended:
                break
            watch()
            if scoring and scoring.done() and not told:
                channel.every_list_is_there()
                told = True
            wait_for([running], timeout=_LOOK_EVERY_S)
    except BaseException:
        channel.stop()
        wait_for([running])
        raise
    running.result()
    if failure is not None:
        raise failure


def _pass_on(message: Message, journal: Journal, sinks: tuple[MetricLogger, ...]) -> PipelineError | None:
    if message.kind == "event":
        journal.event(**message.data)
    elif message.kind == "progress":
        journal.progress(**message.data)
    elif message.kind == "phase":
        journal.phase(**message.data)
    elif message.kind == "metrics":
        for sink in sinks:
            sink.log(message.data["step"], message.data["values"])
    elif message.kind == "failed":
        found: type[PipelineError] = getattr(errors, message.data["kind"], PipelineError)
        return found(message.data["message"])
    return None
