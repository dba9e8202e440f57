"""The training loop, one for students and rankers alike.

Enters: a model, a function from a batch to its losses, a function that opens the batch stream at a position.
Leaves: the trained model, a report per step, checkpoints. It knows nothing of lists, teachers or services.

    restore the newest checkpoint, or start at zero
    for each batch from there:  losses -> backward -> clip -> AdamW -> schedule -> report -> maybe checkpoint
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipelines.errors import ObjectiveError
from pipelines.ranked.tail import StreamPosition
from pipelines.training.checkpoints import Checkpoints, RunPoint

__all__ = ["LoopSettings", "StepReport", "train"]

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Optimisation settings. The learning rate warms up linearly, then falls to zero along a cosine."""

    total_steps: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    checkpoint_every_steps: int
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Of the parameters below a child module of that name, instead of `learning_rate`."""


@dataclass(frozen=True)
class StepReport:
    """What happened in one optimizer step (1-based)."""

    step: int
    total_steps: int
    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    learning_rate: float = 0.0


def train(
    model: nn.Module,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    open_batches: Callable[[StreamPosition], Iterator[tuple[Batch, StreamPosition]]],
    settings: LoopSettings,
    *,
    on_step: Callable[[StepReport], None],
    checkpoints: Checkpoints | None = None,
) -> RunPoint:
    """Train `model` in place until the stream ends or `total_steps` are done; returns where it stopped.

    Args:
        model: in any mode; left in eval mode.
        losses_of: `{"loss": scalar to minimise, other names: values to report}`.
        open_batches: the stream from a position on; each batch comes with the position after it.
        settings: optimisation settings.
        on_step: called after every step; what it raises ends the training (cancellation).
        checkpoints: where to resume from and save to; None trains without.

    Raises:
        ObjectiveError: a loss or its gradient is NaN or infinite; the weights before that step are unharmed.
    """
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings), lr=settings.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _warm_cosine(done, settings))
    point = checkpoints.restore(model, optimizer, scheduler) if checkpoints else RunPoint()
    saved_step = point.step
    model.train()
    if point.step < settings.total_steps:
        for batch, following in open_batches(point.position):
            losses = losses_of(batch)
            if not math.isfinite(losses["loss"].item()):
                raise ObjectiveError(f"loss is {losses['loss'].item()} at step {point.step + 1}")
            torch.autograd.backward(losses["loss"])
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            if not math.isfinite(grad_norm.item()):
                raise ObjectiveError(f"the gradient's norm is {grad_norm.item()} at step {point.step + 1}")
            rate = float(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            point = RunPoint(point.step + 1, following)
            values = {name: value.item() for name, value in losses.items()}
            on_step(StepReport(point.step, settings.total_steps, values, grad_norm.item(), rate))
            if checkpoints and point.step % settings.checkpoint_every_steps == 0:
                checkpoints.save(point, model, optimizer, scheduler)
                saved_step = point.step
            if point.step == settings.total_steps:
                break
    if checkpoints and point.step != saved_step:
        checkpoints.save(point, model, optimizer, scheduler)
    model.eval()
    return point


def _parameter_groups(model: nn.Module, settings: LoopSettings) -> list[dict[str, object]]:
    """Decay matrices only: biases and normalisation weights are left alone, as is usual for transformers."""
    special = {child: list(getattr(model, child).parameters()) for child in settings.learning_rates}
    apart = {id(parameter) for parameters in special.values() for parameter in parameters}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    for child, parameters in special.items():
        if parameters:
            groups.append({"params": parameters, "weight_decay": 0.0, "lr": settings.learning_rates[child]})
    return groups


def _warm_cosine(done: int, settings: LoopSettings) -> float:
    warmup = max(1, round(settings.warmup_ratio * settings.total_steps))
    if done < warmup:
        return (done + 1) / warmup
    progress = min(1.0, (done - warmup) / max(1, settings.total_steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))
