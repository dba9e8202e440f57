"""The training loop, one for students and rankers alike.

Enters: a model, a function from a batch to its losses, a function that opens the batch stream at a position.
Leaves: the trained model, a report per step, checkpoints. It knows nothing of lists, teachers or services.

    restore the newest checkpoint, or start at zero
    for each batch from there:
        losses -> backward -> mean over workers -> clip -> AdamW -> schedule -> report
        now and then: measure on held-out queries, stop if it no longer helps; checkpoint
    with held-out queries: the weights that did best there

Everything drawn at random in a step is drawn from (seed, step): whoever resumes draws the same.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipelines.errors import CheckpointError, ObjectiveError
from pipelines.ranked.tail import StreamPosition
from pipelines.training.checkpoints import Checkpoints, RunPoint
from pipelines.training.held_out import Best, HeldOutCheck
from pipelines.training.optimizer import LoopSettings, new_optimizer, new_schedule
from pipelines.training.workers import ALONE, Workers, average_gradients, the_first_says

__all__ = ["LoopSettings", "StepReport", "train"]

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StepReport:
    """What happened in one optimizer step (1-based). Equal reports are of equal steps, however long they took."""

    step: int
    total_steps: int
    losses: Mapping[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    seconds: float = field(default=0.0, compare=False)
    """From the last step's end to this one's."""
    data_wait_s: float = field(default=0.0, compare=False)
    """Of those, waiting for the batch."""
    held_out: float | None = None
    """The measure on held-out queries, where it was taken after this step."""


def train(
    model: nn.Module,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    open_batches: Callable[[StreamPosition], Iterator[tuple[Batch, StreamPosition]]],
    settings: LoopSettings,
    *,
    on_step: Callable[[StepReport], None],
    checkpoints: Checkpoints | None = None,
    after_update: Callable[[], None] = lambda: None,
    held_out: HeldOutCheck | None = None,
    workers: Workers = ALONE,
) -> RunPoint:
    """Train `model` in place until the stream ends, its steps are done or it no longer helps.

    With `settings.begins_at` and `stops_after` it is one part of a longer run over several streams: weights, optimizer
    and schedule go on from part to part, the stream begins anew.

    Args:
        model: in any mode; left in eval mode.
        losses_of: `{"loss": scalar to minimise, other names: values to report}`.
        open_batches: the stream from a position on; each batch comes with the position after it.
        settings: optimisation settings.
        on_step: called after every step; what it raises ends the training (cancellation).
        checkpoints: where to resume from and save to; None trains without.
        after_update: called when the weights have changed, before anything is measured or saved.
        held_out: measured every so many steps and at the end; needs `checkpoints`, where the best weights are kept.
        workers: all call this with the same stream and settings, and with models that start equal.

    Returns:
        Where it stopped.

    Raises:
        ObjectiveError: a loss or its gradient is NaN or infinite; the weights before that step are unharmed.
        CheckpointError: the newest checkpoint cannot be read, or is older than where this part of the run begins.
    """
    if held_out and not checkpoints:
        raise ValueError("held-out measuring keeps the best weights in a checkpoint folder, and none is given")
    optimizer = new_optimizer(model, settings)
    scheduler = new_schedule(optimizer, settings)
    point = _starting_point(model, optimizer, scheduler, settings, checkpoints, workers)
    saved_step = point.step
    model.train()
    if point.step < settings.last_step and not (held_out and held_out.is_over(point.step, point.best)):
        mark = time.perf_counter()
        for batch, following in open_batches(point.position):
            arrived = time.perf_counter()
            torch.manual_seed(settings.seed * 1_000_003 + point.step)
            losses = losses_of(batch)
            grad_norm = _backward(model, losses, settings, workers, step=point.step + 1)
            rate = float(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            after_update()
            point = RunPoint(point.step + 1, following, point.best)
            last = point.step == settings.last_step
            measured = None
            if checkpoints and held_out and held_out.is_due(point.step, last=last):
                point, measured = _measured(point, model, held_out, checkpoints, workers)
            values = {name: value.item() for name, value in losses.items()}
            now = time.perf_counter()
            on_step(
                StepReport(
                    point.step, settings.total_steps, values, grad_norm, rate, now - mark, arrived - mark, measured
                )
            )
            mark = now
            over = last or (held_out is not None and held_out.is_over(point.step, point.best))
            if checkpoints and (point.step % settings.checkpoint_every_steps == 0 or over):
                if workers.leads:
                    checkpoints.save(point, model, optimizer, scheduler)
                saved_step = point.step
            if over:
                break
    if checkpoints and held_out and 0 < point.step < settings.last_step:
        over = held_out.is_due(point.step, last=False) or held_out.is_over(point.step, point.best)
        if not over:  # the stream ended before it was expected to, and nobody has measured what it led to
            point, _ = _measured(point, model, held_out, checkpoints, workers)
    if checkpoints and point.step != saved_step and workers.leads:
        checkpoints.save(point, model, optimizer, scheduler)
    if checkpoints and point.best:
        the_first_says(None, workers)  # until it has written them
        checkpoints.load_best(point.best, model)
    model.eval()
    return point


def _starting_point(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: LoopSettings,
    checkpoints: Checkpoints | None,
    workers: Workers,
) -> RunPoint:
    """Where the newest checkpoint is, restored, or zero; a part of a run begins with a new stream."""
    point = checkpoints.restore(model, optimizer, scheduler) if checkpoints else RunPoint()
    if the_first_says(point.step, workers) != point.step:
        raise CheckpointError(f"worker {workers.rank} found the checkpoint of step {point.step}, the first another one")
    if point.step < settings.begins_at:
        raise CheckpointError(
            f"the newest checkpoint is of step {point.step}, and this part of the run begins after {settings.begins_at}"
        )
    return replace(point, position=StreamPosition()) if point.step == settings.begins_at else point


def _backward(
    model: nn.Module, losses: Mapping[str, Tensor], settings: LoopSettings, workers: Workers, *, step: int
) -> float:
    """Leave clipped gradients in `model`; returns their norm before that."""
    if not math.isfinite(losses["loss"].item()):
        raise ObjectiveError(f"loss is {losses['loss'].item()} at step {step}")
    torch.autograd.backward(losses["loss"])
    average_gradients(model, workers)
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
    if not math.isfinite(norm):
        raise ObjectiveError(f"the gradient's norm is {norm} at step {step}")
    return norm


def _measured(
    point: RunPoint, model: nn.Module, held_out: HeldOutCheck, checkpoints: Checkpoints, workers: Workers
) -> tuple[RunPoint, float]:
    """The measure of `model` at `point`, and `point` with it as the best if it is, its weights then kept."""
    model.eval()
    value = float(the_first_says(held_out.measure() if workers.leads else None, workers))
    model.train()
    if point.best is None or value > point.best.value:
        point = replace(point, best=Best(point.step, value))
        if workers.leads:
            checkpoints.save_best(point, model)
    return point, value
