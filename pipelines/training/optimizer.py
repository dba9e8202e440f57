"""AdamW and its schedule, as the loop uses them.

Enters: a model and `LoopSettings`. Leaves: an optimizer that decays matrices only, and a schedule that warms up
linearly and falls to zero along a cosine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

__all__ = ["LoopSettings", "new_optimizer", "new_schedule"]


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
    begins_at: int = 0
    """Steps done before the stream that is opened now: with exactly so many, it is read from its beginning."""
    stops_after: int | None = None
    """Steps after which this part of the run ends, while the schedule spans `total_steps`; null: after all."""
    seed: int = 0
    """Of everything that is drawn in a step, together with its number."""

    @property
    def last_step(self) -> int:
        """Of this part of the run."""
        return self.total_steps if self.stops_after is None else self.stops_after


def new_optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and normalisation weights are not decayed, as is usual."""
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
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def new_schedule(optimizer: torch.optim.Optimizer, settings: LoopSettings) -> torch.optim.lr_scheduler.LambdaLR:
    """One factor for all rates, a function of the steps done."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _warm_cosine(done, settings))


def _warm_cosine(done: int, settings: LoopSettings) -> float:
    warmup = max(1, round(settings.warmup_ratio * settings.total_steps))
    if done < warmup:
        return (done + 1) / warmup
    progress = min(1.0, (done - warmup) / max(1, settings.total_steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))
