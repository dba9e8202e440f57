"""Which column of a list is the positive, checked once for every objective that needs one.

Enters: `positive` as the step offers it, and the mask of real candidates. Leaves: who has a positive, and an index that
`gather` accepts; or an `ObjectiveError`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_indices

__all__ = ["PositiveColumn", "positive_column"]


@dataclass(frozen=True)
class PositiveColumn:
    """The positive of each query of a batch of lists.

    Attributes:
        known: [queries, 1] bool, True where the query has a positive.
        index: [queries, 1] int64 for `gather`; 0 where there is none.
        negatives: [queries, candidates] bool, the other real candidates of the queries that have a positive.
    """

    known: Tensor
    index: Tensor
    negatives: Tensor


def positive_column(objective: str, positive: Tensor, mask: Tensor, positives: Tensor | None = None) -> PositiveColumn:
    """Check `positive` against the lists it points into.

    Args:
        objective: name used in error messages.
        positive: [queries] int64, column of the positive, -1 = none.
        mask: [queries, candidates] bool, True = real candidate.
        positives: [queries, candidates] bool, further positives, which are no negatives either; None = only that one.

    Raises:
        ObjectiveError: not one int64 column per query, a column outside the list, or one that is padding.
    """
    rows, width = mask.shape
    require_indices(objective, "positive", positive, rows=rows, width=width)
    known = (positive >= 0).unsqueeze(1)
    index = positive.clamp(min=0).unsqueeze(1)
    padded = known & ~mask.gather(1, index)
    if bool(padded.any()):
        raise ObjectiveError(f"{objective}: the positive of row {int(padded.nonzero()[0, 0])} is a masked column")
    negatives = (mask & known).scatter(1, index, torch.zeros_like(known))
    if positives is not None:
        require_bool_like(objective, "positives", positives, mask)
        negatives = negatives & ~positives
    return PositiveColumn(known, index, negatives)
