"""Which of a list's candidates CPRD ranks: the leading run, in the teacher's order, of those that are valid.

Enters: teacher scores [queries, candidates], their order, and the rules. Leaves: the prefix. The paper's rule could not
be read; these are dualdistill's: a count sees the order alone, a threshold and a margin read the teacher's scale.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number

__all__ = ["ValidityRules", "best_score", "margin_reference", "valid_prefix"]


@dataclass(frozen=True)
class ValidityRules:
    """A candidate is valid when every rule that is given says so.

    Attributes:
        threshold: sigmoid(teacher score) is above it.
        margin: the teacher score is less than this below the reference.
        count: it is among the first so many.
    """

    threshold: float | None
    margin: float | None
    count: int | None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ObjectiveError(f"cprd: valid_threshold must be a probability, got {self.threshold}")
        if self.margin is not None:
            require_positive_number("cprd", "valid_margin", self.margin)
        if self.count is not None and self.count < 1:
            raise ObjectiveError(f"cprd: max_valid must be at least 1, got {self.count}")


def valid_prefix(teacher: Tensor, may_be: Tensor, order: Tensor, reference: Tensor, rules: ValidityRules) -> Tensor:
    """[queries, candidates] bool, in the teacher's order: True until the first candidate that is not valid.

    Args:
        teacher: [queries, candidates], raw logits.
        may_be: [queries, candidates] bool, candidates that stand in the list and that the caller calls valid.
        order: [queries, candidates] int64, columns in the teacher's order.
        reference: [queries, 1], teacher score from which the margin is measured.
        rules: see there.
    """
    if rules.threshold is not None:
        # Compared as logits: the sigmoid of a confident teacher rounds to 1 and would pass or fail by rounding.
        may_be = may_be & (teacher > _logit(rules.threshold))
    if rules.margin is not None:
        may_be = may_be & (teacher > reference - rules.margin)
    prefix = may_be.gather(1, order).long().cumprod(dim=1).bool()
    if rules.count is not None:
        prefix[:, rules.count :] = False
    return prefix


def margin_reference(teacher: Tensor, listed: Tensor, positive: Tensor | None) -> Tensor:
    """[queries, 1]: the teacher's score of the positive, or of its best candidate where there is none (-1, or None)."""
    best = best_score(teacher, listed)
    if positive is None:
        return best
    return torch.where(positive.unsqueeze(1) >= 0, teacher.gather(1, positive.clamp(min=0).unsqueeze(1)), best)


def best_score(teacher: Tensor, among: Tensor) -> Tensor:
    """[queries, 1]: the highest teacher score among some candidates, minus infinity where there are none."""
    return teacher.masked_fill(~among, -torch.inf).amax(dim=1, keepdim=True)


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability) - math.log1p(-probability)
