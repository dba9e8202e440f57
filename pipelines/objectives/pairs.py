"""Pairs of candidates of one list: differences, which of them the teacher orders, which are near the student's top.

Enters: scores [queries, candidates] and a mask. Leaves: [queries, candidates, candidates] tensors whose entry (i, j)
speaks of candidate i against candidate j; padding is in no pair.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError

__all__ = [
    "LogBase",
    "TopKPairs",
    "differences",
    "log_unit",
    "near_the_top",
    "ordered_pairs",
    "predicted_order",
    "require_non_negative_number",
    "soft_ranks",
]

LogBase = Literal["natural", "binary"]
TopKPairs = Literal["either", "both"]


def differences(values: Tensor) -> Tensor:
    """Entry (i, j) is values_i - values_j."""
    return values.unsqueeze(2) - values.unsqueeze(1)


def ordered_pairs(teacher: Tensor, mask: Tensor, *, margin: float = 0.0) -> Tensor:
    """1 where both candidates are real and teacher_i > teacher_j + margin, 0 elsewhere, in the teacher's dtype."""
    better = teacher.masked_fill(~mask, -torch.inf)
    worse = (teacher + margin).masked_fill(~mask, torch.inf)
    # A comparison would say the same, but on CPU bool tensors of this size cost several times as much.
    return (better.unsqueeze(2) - worse.unsqueeze(1)).clamp_(min=0).sign_()


def predicted_order(student: Tensor, mask: Tensor) -> Tensor:
    """Columns of each row as the student ranks them, best first; ties keep column order, padding comes last."""
    return student.detach().masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)


def near_the_top(objective: str, top_k: int | None, rule: TopKPairs, like: Tensor) -> Tensor:
    """[width, width] of 1 and 0 over places of the predicted order: pairs that `top_k` lets count; None = all.

    Raises:
        ObjectiveError: `top_k` below 1, unknown rule.
    """
    if top_k is not None and top_k < 1:
        raise ObjectiveError(f"{objective}: top_k must be at least 1, got {top_k}")
    inside = torch.ones_like(like[0])
    if top_k is not None:
        inside[top_k:] = 0
    if rule == "either":
        return torch.maximum(inside.unsqueeze(1), inside)
    if rule == "both":
        return inside.unsqueeze(1) * inside
    raise ObjectiveError(f"{objective}: unknown top_k_pairs {rule!r}")


def soft_ranks(logits: Tensor, mask: Tensor) -> Tensor:
    """Differentiable rank 1 + sum over others j of sigmoid(logit_j - logit_i); arbitrary at padding."""
    # Padding far below everybody adds exactly 0 with zero gradient: no mask over pairs is needed.
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min / 4)
    return 0.5 + (logits.unsqueeze(1) - logits.unsqueeze(2)).sigmoid().sum(dim=2)


def log_unit(objective: str, log_base: LogBase) -> float:
    """Nats in one unit of that logarithm: what a loss in nats is divided by.

    Raises:
        ObjectiveError: unknown base.
    """
    if log_base == "natural":
        return 1.0
    if log_base == "binary":
        return math.log(2)
    raise ObjectiveError(f"{objective}: unknown log_base {log_base!r}")


def require_non_negative_number(objective: str, label: str, value: float) -> None:
    """Refuse a margin or weight that is negative, NaN or infinite.

    Raises:
        ObjectiveError: with the value.
    """
    if not 0 <= value < float("inf"):
        raise ObjectiveError(f"{objective}: {label} must be a finite number >= 0, got {value}")
