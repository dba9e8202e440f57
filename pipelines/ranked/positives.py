"""Which candidates of a list count as its positives: judged ones, else the teacher's best if the teacher is sure.

Enters: lists as flat arrays, a `PositiveRule`. Leaves: one bool per candidate. Filters measure margins from these,
exports write them as positives, training puts one of them into each list.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.ranked.columns import ListColumns

__all__ = ["PositiveRule", "positives", "top_probability"]


@dataclass(frozen=True)
class PositiveRule:
    """Where a query's positive comes from: its labels, else the teacher."""

    use_labels: bool
    teacher_top: bool
    min_confidence: float
    """Softmax probability over the whole list that the teacher's best candidate must reach."""
    per_query: int = 1
    """At most so many judged positives stand in one list of a training step."""


def positives(columns: ListColumns, rule: PositiveRule) -> npt.NDArray[np.bool_]:
    """True where a candidate is a positive of its list, [C]."""
    found = (columns.relevance > 0) & rule.use_labels
    if rule.teacher_top and columns.num_candidates:
        judged = np.zeros(len(columns), dtype=np.bool_)
        judged[columns.list_of[found]] = True
        filled = np.flatnonzero((columns.lengths > 0) & ~judged)
        sure = filled[top_probability(columns)[filled] >= rule.min_confidence]
        found[columns.offsets[sure]] = True
    return found


def top_probability(columns: ListColumns) -> npt.NDArray[np.float64]:
    """Softmax probability of each list's best candidate within its list, at temperature 1, [Q]; NaN where empty."""
    best = np.full(len(columns), np.nan)
    filled = columns.lengths > 0
    starts = columns.offsets[:-1][filled]
    if not len(starts):
        return best
    logits = columns.teacher_logit.astype(np.float64)
    top = logits[starts]  # stored order is the ranking: the first is the best
    shares = np.exp(logits - np.repeat(top, columns.lengths[filled]))
    best[filled] = 1.0 / np.add.reduceat(shares, starts)
    return best
