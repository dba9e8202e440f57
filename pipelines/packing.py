"""Pack texts or pairs into batches by a token budget, so that padding costs little and memory is bounded.

Enters: one length per item (tokens). Leaves: batches of row numbers; the padded size of each, rows x longest row,
stays within the budget. Longest first: a batch that would not fit memory fails at once, not after an hour; and the
last batches are the cheap ones, so that workers finish together.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["pack_by_tokens", "padding_waste"]


def pack_by_tokens(lengths: npt.NDArray[np.int64], tokens_per_batch: int) -> list[npt.NDArray[np.int64]]:
    """Batches of indices into `lengths` ([n]), each with `rows * max(length) <= tokens_per_batch`.

    An item longer than the budget gets a batch of its own. Equal lengths keep their order, so packing is deterministic.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        rows = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def padding_waste(lengths: npt.NDArray[np.int64], batches: list[npt.NDArray[np.int64]]) -> float:
    """Share of padded tokens that are padding, 0 to 1."""
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1.0 - float(lengths.sum()) / padded if padded else 0.0
