"""The learning rate range test: which rate to train with, found in one short run that leaves no trace.

Enters: a model, its losses, batches. Leaves: the loss against an exponentially rising rate, and a suggestion.

    rate      r_i = lowest (highest / lowest)^(i / (steps - 1)),   one AdamW step at each
    smoothed  s_i = mean of the losses within steps // 20 of i (centred: an average over the past alone lags, and would
              find the steepest place at too high a rate)
    ends      early when a moving average of the loss is above 4 times its lowest, or a loss is not finite
    answer    the r_i where s falls most steeply over log r before its minimum, at most a tenth of the minimum's rate

Weights, buffers, gradients, modes and random generators are as before afterwards, bit for bit, also when it fails.

Source: Smith, arXiv 1506.01186 (the range test). The stop at 4 times and the steepest descent capped at a tenth of the
minimum's rate are fastai's; centred smoothing is dualdistill's.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.errors import DataError, ObjectiveError

__all__ = ["RateCurve", "find_learning_rate"]

Batch = TypeVar("Batch")
_DIVERGED = 4.0
_MEMORY = 0.8


@dataclass(frozen=True)
class RateCurve:
    """Losses before the step at each rate, as far as the test came."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float
    diverged: bool
    """Whether the test ended early because the loss exploded; otherwise a higher `highest` may show more."""


def find_learning_rate(
    model: nn.Module,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    batches: Iterable[Batch],
    *,
    lowest: float = 1e-6,
    highest: float = 1e-1,
    steps: int = 100,
    max_grad_norm: float = 1.0,
) -> RateCurve:
    """Train `model` for `steps` batches at a rising rate, put everything back, and say which rate looks best.

    Args:
        model: what is trained; everything that `losses_of` changes must be in it. Its weights are held twice meanwhile.
        losses_of: `{"loss": scalar to minimise, ...}`.
        batches: at least `steps`; no more are taken.
        lowest: first rate.
        highest: last rate.
        steps: at least 20.
        max_grad_norm: gradients are clipped to that norm.

    Raises:
        DataError: fewer batches than steps.
        ObjectiveError: the loss never falls by more than its noise, or only at rates within ten times `lowest`.
        ValueError: impossible arguments.
    """
    if not 0 < lowest < highest < math.inf or steps < 20:
        raise ValueError(f"needs 0 < lowest < highest and 20 steps, got {lowest}, {highest} and {steps} steps")
    rates = np.geomspace(lowest, highest, steps)
    with _left_as_it_was(model):
        losses, diverged = _rising(model, losses_of, batches, rates, max_grad_norm)
    rates = rates[: len(losses)]
    smoothed = _smoothed(losses, half=steps // 20)
    suggestion = _suggestion(rates, losses, smoothed, half=steps // 20)
    return RateCurve(tuple(rates.tolist()), tuple(losses.tolist()), tuple(smoothed.tolist()), suggestion, diverged)


def _rising(
    model: nn.Module,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    batches: Iterable[Batch],
    rates: npt.NDArray[np.float64],
    max_grad_norm: float,
) -> tuple[npt.NDArray[np.float64], bool]:
    """Losses until the rates or the patience end, and which of the two it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=float(rates[0]), weight_decay=0.0)
    model.train()
    losses: list[float] = []
    sluggish, best = 0.0, math.inf
    stream = iter(batches)
    for rate in rates:
        try:
            batch = next(stream)
        except StopIteration:
            raise DataError(f"the range test takes {len(rates)} batches, the stream has {len(losses)}") from None
        loss = losses_of(batch)["loss"]
        value = loss.item()
        if not math.isfinite(value):
            if not losses:
                raise ObjectiveError(f"the loss is {value} before the first step of the range test")
            return np.array(losses), True
        losses.append(value)
        sluggish = _MEMORY * sluggish + (1 - _MEMORY) * value
        average = sluggish / (1 - _MEMORY ** len(losses))
        best = min(best, average)
        if average > best + (_DIVERGED - 1) * abs(best):
            return np.array(losses), True
        # Not `backward`: it would add to the gradients of whatever else the loss depends on.
        gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient
        if not math.isfinite(nn.utils.clip_grad_norm_(trainable, max_grad_norm).item()):
            return np.array(losses), True
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.step()
    return np.array(losses), False


def _smoothed(losses: npt.NDArray[np.float64], *, half: int) -> npt.NDArray[np.float64]:
    """Centred moving average; windows are cut at both ends."""
    return np.array([losses[max(0, i - half) : i + half + 1].mean() for i in range(len(losses))])


def _suggestion(
    rates: npt.NDArray[np.float64],
    losses: npt.NDArray[np.float64],
    smoothed: npt.NDArray[np.float64],
    *,
    half: int,
) -> float:
    lowest = int(smoothed.argmin())
    # The median is not moved by an explosion at the end. Windows are cut in half at the first step.
    deviation = 1.4826 * float(np.median(np.abs(losses - smoothed)))
    noise = deviation * math.sqrt(1 / (half + 1) + 1 / (2 * half + 1))
    if lowest == 0 or smoothed[0] - smoothed[lowest] <= 4 * noise:
        raise ObjectiveError(
            f"the loss never falls by more than its noise at rates from {rates[0]:.3g} to {rates[-1]:.3g}: it is "
            f"{smoothed[0]:.4g} first and {smoothed[lowest]:.4g} at best; more steps or larger batches may show more"
        )
    if rates[lowest] < 10 * rates[0]:
        raise ObjectiveError(
            f"the loss is lowest at a rate of {rates[lowest]:.3g}, within ten times of the first, {rates[0]:.3g}: "
            "begin lower"
        )
    slope = np.gradient(smoothed[: lowest + 1], np.log10(rates[: lowest + 1]))
    return float(min(rates[int(slope.argmin())], rates[lowest] / 10))


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Parameters, buffers, gradients, modes and generators come back to what they were."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
