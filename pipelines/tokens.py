"""Texts as token ids: ragged rows in two flat arrays, and pairs of them without a text repeated.

Enters: one list of ids per text. Leaves: `Tokens` (rows of any length, a rectangle where a model wants one), and
`TokenPairs`, what a teacher scores: each distinct query and passage once, and two index arrays that say which goes with
which. Both are NumPy buffers, so they cross a process border as they are.
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

    def padded(self, rows: npt.NDArray[np.int64], *, pad_id: int) -> dict[str, npt.NDArray[np.int64]]:
        """`input_ids` and `attention_mask` of the rows `rows`, int64 [rows, longest], padded on the right."""
        taken = self.take(rows)
        mask = np.arange(int(taken.lengths.max())) < taken.lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = taken.values
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}

    def take(self, rows: npt.NDArray[np.int64]) -> "Tokens":
        """The rows `rows`, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Tokens(self.values[runs(self.offsets[rows], lengths)], offsets)


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

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each pair, query and passage together."""
        return self.queries.lengths[self.query] + self.passages.lengths[self.passage]

    def take(self, rows: npt.NDArray[np.int64]) -> "TokenPairs":
        """The pairs `rows`, in that order, with the texts that they need and no others."""
        queries, query = np.unique(self.query[rows], return_inverse=True)
        passages, passage = np.unique(self.passage[rows], return_inverse=True)
        return TokenPairs(self.tokenizer_hash, self.queries.take(queries), self.passages.take(passages), query, passage)

    @classmethod
    def joined(cls, parts: Sequence["TokenPairs"]) -> "TokenPairs":
        """The pairs of all `parts`, one part after the other.

        Raises:
            ValueError: there are none, or several tokenizers made them.
        """
        if len(names := {part.tokenizer_hash for part in parts}) != 1:
            raise ValueError(f"pairs of {len(names)} tokenizers cannot be joined")
        queries, query = _stacked([(part.queries, part.query) for part in parts])
        passages, passage = _stacked([(part.passages, part.passage) for part in parts])
        return cls(names.pop(), queries, passages, query, passage)


def runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers from `starts[i]`, `lengths[i]` of them, for each i, one run after the other."""
    ends = np.cumsum(lengths)
    numbers = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    numbers += np.repeat(starts - (ends - lengths), lengths)
    return numbers


def _stacked(
    parts: Sequence[tuple[Tokens, npt.NDArray[np.int64]]],
) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """The rows of all parts in one block, and the index arrays into it, one after the other."""
    firsts = np.concatenate([[0], np.cumsum([len(tokens) for tokens, _ in parts])])
    lengths = np.concatenate([tokens.lengths for tokens, _ in parts])
    block = Tokens(
        np.concatenate([tokens.values for tokens, _ in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    return block, np.concatenate([index + first for (_, index), first in zip(parts, firsts, strict=False)])
