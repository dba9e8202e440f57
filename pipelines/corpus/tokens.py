"""Texts as token ids: ragged rows in two flat arrays, and pairs of them without a text repeated.

Enters: one list of ids per text. Leaves: `Tokens` (rows of any length), and `TokenPairs`, what a teacher scores: each
distinct query and passage once, and two index arrays that say which goes with which. Both are NumPy buffers, so they
cross a process border as they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TokenPairs", "Tokens", "runs"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | npt.NDArray[np.int32]]) -> "Tokens":
        """Copy rows of ids into one block."""
        parts = [np.asarray(row, dtype=np.int32) for row in rows]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        values = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """Pair i is `queries[query[i]]` with `passages[passage[i]]`; no special tokens, nothing cut."""

    tokenizer_hash: str
    """Which tokenizer made the ids: see `model_files.tokenizer_hash`."""
    queries: Tokens
    passages: Tokens
    query: npt.NDArray[np.int64]
    passage: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.query)


def runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers from `starts[i]`, `lengths[i]` of them, for each i, one run after the other."""
    ends = np.cumsum(lengths)
    numbers = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    numbers += np.repeat(starts - (ends - lengths), lengths)
    return numbers
