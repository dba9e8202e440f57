"""Plackett-Luce: an order as draws without replacement, each from a softmax over what is left.

Enters: logits [queries, candidates] and the order in which the candidates should be drawn. Leaves: what each draw
costs, in nats. Objectives that learn a teacher's order differ in which draws they count and how much.
"""

import torch
from torch import Tensor

from pipelines.objectives.masked import zero_probability_logit

__all__ = ["draw_costs"]


def draw_costs(logits: Tensor, order: Tensor, listed: Tensor, rivals: Tensor | None = None) -> Tensor:
    """Minus log-probability of each draw from its candidate, all that come after it, and the rivals.

    Args:
        logits: [queries, candidates] in column order.
        order: [queries, candidates] int64, columns as they should be drawn, unlisted ones last (`teacher_order`).
        listed: [queries, candidates] bool, in column order.
        rivals: [queries, rivals] logits that stay in every denominator and are never drawn;
            `zero_probability_logit` where there is none. None = no rivals.

    Returns:
        [queries, candidates] in drawn order, >= 0 up to rounding; exactly 0, without gradient, for a draw from a single
        candidate and for unlisted ones.
    """
    nothing = zero_probability_logit(logits.dtype)
    drawn = torch.where(listed, logits, nothing).gather(1, order)
    log_left = drawn.flip(1).logcumsumexp(dim=1).flip(1)
    count = listed.sum(dim=1, keepdim=True)
    place = torch.arange(drawn.shape[1], device=drawn.device)
    # The last draw has one candidate left: log 1, which autograd would miss by 1e-7.
    contested = place < count - 1
    if rivals is not None:
        log_left = torch.logaddexp(log_left, rivals.logsumexp(dim=1, keepdim=True))
        contested = contested | ((place < count) & (rivals > nothing).any(dim=1, keepdim=True))
    return torch.where(contested, log_left - drawn, 0)
