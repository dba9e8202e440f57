"""Softmax and order over the real candidates of a list, finite forward and backward.

Enters: scores [queries, candidates] and a mask. Leaves: log-probabilities or an order in which padding has no part.
"""

import torch
from torch import Tensor

__all__ = ["masked_log_softmax", "teacher_order", "zero_probability_logit"]


def zero_probability_logit(dtype: torch.dtype) -> float:
    """A finite logit whose softmax probability is exactly 0 beside any real one.

    Minus infinity would do in the forward pass, but the backward passes of `logcumsumexp` and `log_softmax`
    turn it into NaN on rows that hold nothing else.
    """
    return torch.finfo(dtype).min / 4


def masked_log_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probabilities over the True candidates of each row, over all if None; 0 elsewhere, without gradient."""
    if mask is None:
        return logits.log_softmax(dim=1)
    # `where` is several times as fast as `masked_fill` on a CPU.
    filled = torch.where(mask, logits, zero_probability_logit(logits.dtype))
    return torch.where(mask, filled.log_softmax(dim=1), 0)


def teacher_order(teacher: Tensor, listed: Tensor) -> Tensor:
    """Columns of each row, best teacher score first; ties keep column order, unlisted columns come last.

    Args:
        teacher: [queries, candidates].
        listed: [queries, candidates] bool.

    Returns:
        int64 [queries, candidates].
    """
    return teacher.masked_fill(~listed, -torch.inf).argsort(dim=1, descending=True, stable=True)
