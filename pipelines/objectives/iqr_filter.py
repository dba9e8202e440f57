"""Box-and-whisker filter: scores that lie within the whiskers of their list's box plot.

    keep v  where  Q1 - whisker (Q3 - Q1) <= v <= Q3 + whisker (Q3 - Q1)

Q1 and Q3 are the sorted scores at index floor(n / 4) and floor(3 n / 4), without interpolation. It cuts both tails: the
upper one holds likely false negatives, the lower one what teaches nothing. It reads scores alone, of a student or of a
teacher, so it serves mined lists as well as the pairs of a batch.

Source: arXiv 2203.11593 and its official code Jung-Jun-Uk/UNPG (`box_and_whisker_algorithm`).
"""

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite

__all__ = ["iqr_filter"]


def iqr_filter(values: Tensor, whisker: float, mask: Tensor | None = None) -> Tensor:
    """True where a value is within the whiskers of its list.

    Args:
        values: [..., n], each last dimension is one list; constants here.
        whisker: length of the whiskers in interquartile ranges; 1.5 is the usual one, 0 keeps the box alone.
        mask: [..., n] bool, True = part of the list; None = all. What stands at False is ignored, NaN included.

    Returns:
        bool [..., n], False where masked.

    Raises:
        ObjectiveError: a negative or non-finite whisker, NaN or infinite values, a mask of another shape.
    """
    if not 0 <= whisker < float("inf"):
        raise ObjectiveError(f"iqr_filter: whisker must be a finite number >= 0, got {whisker}")
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    require_bool_like("iqr_filter", "mask", mask, values)
    constants = values.detach().masked_fill(~mask, 0)
    require_finite("iqr_filter", "values", constants)
    if values.shape[-1] == 0:
        return mask
    ranked = constants.masked_fill(~mask, torch.inf).sort(dim=-1).values
    count = mask.sum(dim=-1, keepdim=True)
    last = (count - 1).clamp(min=0)
    lower = ranked.gather(-1, torch.minimum(count // 4, last))
    upper = ranked.gather(-1, torch.minimum(3 * count // 4, last))
    reach = whisker * (upper - lower)
    return mask & (constants >= lower - reach) & (constants <= upper + reach)
