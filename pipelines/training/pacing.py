"""From easy to hard: which lists take part at which point of a run.

Enters: per list how unsure the teacher is and the quantile of the student's loss. Leaves: yes or no.

    entropy     h = - sum_j p_j log p_j / log n,   p = softmax of the teacher's n logits
    difficulty  d = (1 - w) h + w q     q = quantile of the query's loss among those seen; w = 0 where there is none
    limit       at progress t:  start + (1 - start) min(1, t / full_at);   a list takes part if d <= limit

At t >= full_at everything takes part. Progress counts rows of the stream and not steps, and quantiles are frozen per
epoch (`query_losses`): a row's place decides, so what is read ahead within an epoch and where a run resumes change
nothing.

Source: curriculum learning by a competence that grows linearly (Platanios et al., arXiv 1903.09848, `c(t)` with the
difficulty's own scale in place of its distribution); the teacher's entropy and the student's loss as difficulty are
dualdistill's choice.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.errors import ObjectiveError
from pipelines.ranked.tail import StreamPosition
from pipelines.spec_sections.curriculum import PacingSpec

__all__ = ["Pacing", "list_entropy", "progress_at"]


@dataclass(frozen=True)
class Pacing:
    """The rule of one run."""

    spec: PacingSpec

    def limit(self, progress: float) -> float:
        """The highest difficulty that takes part when `progress` (0 to 1) of the run is done."""
        risen = min(1.0, progress / self.spec.full_at)
        return self.spec.start + (1 - self.spec.start) * risen  # 1 in the end: the sum rounds to it

    def difficulty(self, entropy: float, quantile: float) -> float:
        """0 (easy) to 1. `entropy` in [0, 1]; `quantile` in [0, 1], or below 0 for a query not seen yet."""
        weight = self.spec.loss_weight if quantile >= 0 else 0.0
        return min(1.0, (1 - weight) * entropy + weight * quantile)

    def takes_part(self, entropy: float, quantile: float, progress: float) -> bool:
        """Whether a list of that entropy and quantile is learned from at `progress`."""
        return self.difficulty(entropy, quantile) <= self.limit(progress)


def list_entropy(teacher_logits: npt.NDArray[np.floating]) -> float:
    """How unsure the teacher is about a list, 0 (one candidate has it all) to 1 (all alike); no unit.

    Args:
        teacher_logits: [candidates]. Fewer than two leave nothing to be unsure about: 0.

    Raises:
        ObjectiveError: a logit is NaN or infinite.
    """
    logits = np.asarray(teacher_logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ObjectiveError(f"pacing: teacher_logits has {int((~np.isfinite(logits)).sum())} NaN or infinite value(s)")
    if len(logits) < 2:
        return 0.0
    shifted = logits - logits.max()
    log_p = shifted - math.log(np.exp(shifted).sum())
    return float(np.clip(-(np.exp(log_p) * log_p).sum() / math.log(len(logits)), 0, 1))


def progress_at(place: StreamPosition, *, num_rows: int, epochs: int) -> float:
    """Share of a run of `epochs` passes over `num_rows` rows that lies before `place`, 0 to 1."""
    return min(1.0, (place.epoch * num_rows + place.ordinal) / (epochs * num_rows))
