"""What is cut when a pair is too long, decided from lengths alone.

Enters: tokens of each query and passage, and the room they share. Leaves: how many tokens of each are kept.
"""

import numpy as np
import numpy.typing as npt

from pipelines.errors import ContractError

__all__ = ["TRUNCATIONS", "kept_lengths"]

Lengths = npt.NDArray[np.int64]
TRUNCATIONS = ("passage_end", "passage_start", "longest_first")
"""The query whole and the passage's end (or start) cut; or, as most libraries do unasked, the longer of the two cut."""


def kept_lengths(queries: Lengths, passages: Lengths, *, room: int, truncation: str) -> tuple[Lengths, Lengths]:
    """(query, passage) tokens that are kept, each [n]; together at most `room`.

    `longest_first` is that of the `tokenizers` library: the shorter one keeps all it has up to half of the room.

    Raises:
        ContractError: no truncation of that name is known.
    """
    if truncation not in TRUNCATIONS:
        raise ContractError(f"truncation {truncation!r} is none of {', '.join(TRUNCATIONS)}")
    if truncation != "longest_first":
        return queries, np.minimum(passages, np.maximum(room - queries, 0))
    shorter, longer = np.minimum(queries, passages), np.maximum(queries, passages)
    fits = shorter + longer <= room
    kept_long = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
    halved = shorter + kept_long > room
    short = np.where(fits, shorter, np.where(halved, room // 2, shorter))
    long = np.where(fits, longer, np.where(halved, room // 2 + room % 2, kept_long))
    query_is_longer = queries > passages
    return np.where(query_is_longer, long, short), np.where(query_is_longer, short, long)
