"""What a place in the teacher's list is worth: ranks with ties, gains and the discounts of nDCG.

Enters: teacher scores [queries, candidates] and a mask. Leaves: ranks and normalised gains of the same shape, for the
objectives that approximate a ranking metric. A teacher's raw logits are no grades: 2 to the power of a logit means
nothing and a negative logit has a negative gain, so distillation grades by the teacher's rank.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError

__all__ = ["Grades", "TiedRanks", "discounts", "normalised_gains", "ranks_something", "tied_ranks"]

Grades = Literal["teacher_rank", "as_given"]


@dataclass(frozen=True)
class TiedRanks:
    """Places 1, 2, ... of candidates in their list, int64 [queries, candidates]; what stands at padding is arbitrary.

    Attributes:
        best: the first place of the candidate's group of equal scores.
        worst: the last one.
    """

    best: Tensor
    worst: Tensor


def tied_ranks(scores: Tensor, mask: Tensor) -> TiedRanks:
    """Ranks by score, highest first, among the real candidates of each row."""
    listed, order = scores.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True)
    place = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    differs = listed.diff(dim=1) != 0
    edge = torch.ones_like(differs[:, :1])
    # The last place where a group of equal scores began, and the first one where it ends.
    best = (place * torch.cat([edge, differs], dim=1)).cummax(dim=1).values
    worst = place.where(torch.cat([differs, edge], dim=1), len(place)).flip(1).cummin(dim=1).values.flip(1)
    return TiedRanks(*(torch.empty_like(ranks).scatter(1, order, ranks) for ranks in (best, worst)))


def ranks_something(scores: Tensor, mask: Tensor) -> Tensor:
    """[queries] bool: some real candidate is above another. False where there are fewer than two."""
    best = scores.masked_fill(~mask, -torch.inf).amax(dim=1)
    return best > scores.masked_fill(~mask, torch.inf).amin(dim=1)


def discounts(width: int, like: Tensor) -> Tensor:
    """Divisors of nDCG, log2(1 + rank) of the ranks 1..width, in the dtype and on the device of `like`."""
    return torch.arange(2, width + 2, dtype=like.dtype, device=like.device).log2()


def normalised_gains(
    objective: str, teacher: Tensor, mask: Tensor, *, grades: Grades, top_k: int | None = None
) -> Tensor:
    """Gain of each candidate divided by its list's best possible DCG; 0 at padding and on lists without any gain.

    Args:
        objective: name used in error messages.
        teacher: [queries, candidates] in the dtype to compute in; padding holds 0.
        mask: [queries, candidates] bool.
        grades: `teacher_rank`: the gain of the teacher's r-th candidate is 1/r, ties share the best rank;
            `as_given`: teacher scores are graded labels y >= 0 with gain 2^y - 1.
        top_k: the best possible DCG of this many places; None = all.

    Raises:
        ObjectiveError: a negative grade, or unknown `grades`.
    """
    if grades == "teacher_rank":
        gain = tied_ranks(teacher, mask).best.to(teacher.dtype).reciprocal()
    elif grades == "as_given":
        _refuse_negative(objective, teacher)
        # (2^y - 1) / 2^highest: only ratios matter, and 2^y itself overflows float32 from a grade of 128 on.
        highest = teacher.amax(dim=1, keepdim=True)
        gain = -torch.expm1(-math.log(2) * teacher) * (teacher - highest).exp2()
    else:
        raise ObjectiveError(f"{objective}: unknown grades {grades!r}")
    gain = gain.masked_fill(~mask, 0)
    ideal = gain.sort(dim=1, descending=True).values[:, :top_k]
    best_dcg = (ideal / discounts(ideal.shape[1], gain)).sum(dim=1, keepdim=True)
    return gain / best_dcg.clamp(min=torch.finfo(gain.dtype).tiny)


def _refuse_negative(objective: str, grades: Tensor) -> None:
    negative = grades < 0
    if bool(negative.any()):
        first = tuple(int(i) for i in negative.nonzero()[0])
        raise ObjectiveError(
            f"{objective}: grades 'as_given' must not be negative, {int(negative.sum())} of {grades.numel()} are, the "
            f"first ({float(grades[first])}) at {first}; a teacher's raw logits want grades 'teacher_rank'"
        )
