"""Why a candidate is kept or dropped: one reason per candidate, from which everything else follows.

Enters: the reasons that filters gave. Leaves: what is kept, what counts as a positive, and words to show.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["Reason", "Verdicts"]


class Reason(IntEnum):
    """Where several would fit, the first in this order is given. Up to `RELABELLED` a candidate is kept."""

    KEPT = 0
    POSITIVE = 1
    RELABELLED = 2
    ABOVE_POSITIVE = 3
    WITHIN_MARGIN = 4
    OUTSIDE_RANK_WINDOW = 5
    OUTSIDE_SCORE_BAND = 6
    OUTLIER = 7
    SAME_TEXT = 8
    TIED = 9
    SHORT_LIST = 10

    @property
    def label(self) -> str:
        """One word for tables and JSON."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """What happened to the candidate, for a person."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.KEPT: "kept as a negative",
    Reason.POSITIVE: "a positive of its list",
    Reason.RELABELLED: "counts as a positive: the teacher puts it above the positive",
    Reason.ABOVE_POSITIVE: "dropped: the teacher puts it above the positive",
    Reason.WITHIN_MARGIN: "dropped: less than the margin below the positive",
    Reason.OUTSIDE_RANK_WINDOW: "dropped: its rank is outside the window",
    Reason.OUTSIDE_SCORE_BAND: "dropped: its logit is outside the band",
    Reason.OUTLIER: "dropped: its logit is beyond the whiskers of its list",
    Reason.SAME_TEXT: "dropped: another candidate that is kept reads the same",
    Reason.TIED: "dropped: the teacher cannot tell it from another that is kept",
    Reason.SHORT_LIST: "dropped: its list keeps too few candidates",
}


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What filters decided about C candidates."""

    reason: npt.NDArray[np.int8]
    """[C], values of `Reason`."""

    @cached_property
    def kept(self) -> npt.NDArray[np.bool_]:
        """True where a candidate stays: positives, relabelled ones and negatives, [C]."""
        kept: npt.NDArray[np.bool_] = self.reason <= Reason.RELABELLED
        return kept

    @cached_property
    def relabelled(self) -> npt.NDArray[np.bool_]:
        """True where a candidate that was no positive counts as one, with relevance 1, [C]."""
        relabelled: npt.NDArray[np.bool_] = self.reason == Reason.RELABELLED
        return relabelled

    @cached_property
    def negative(self) -> npt.NDArray[np.bool_]:
        """True where a candidate stays as a negative, [C]."""
        negative: npt.NDArray[np.bool_] = self.reason == Reason.KEPT
        return negative

    def reason_of(self, candidate: int) -> Reason:
        """Why candidate number `candidate` (of all C) is kept or dropped."""
        return Reason(int(self.reason[candidate]))

    def counts(self) -> dict[Reason, int]:
        """Candidates by reason, every reason named."""
        found = np.bincount(self.reason, minlength=len(Reason))
        return {reason: int(found[reason]) for reason in Reason}
