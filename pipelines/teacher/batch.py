"""A batch of pairs as models read it: un-padded and flat; whoever needs a rectangle asks for it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PairBatch"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs as one flat row of tokens; pair i has `lengths[i]` of them."""

    input_ids: Ints
    token_types: Ints | None
    lengths: Ints
    pad_id: int

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens of the rectangle that holds the batch."""
        return len(self.lengths) * int(self.lengths.max())

    def padded(self, *, rows: int = 0, width: int = 0) -> dict[str, Ints]:
        """Model inputs by name, each [pairs, longest], padded on the right; larger where `rows` or `width` ask for it.

        Rows beyond the pairs hold one padding token with attention, so that no softmax is over nothing.
        """
        shape = max(rows, len(self)), max(width, int(self.lengths.max()))
        lengths = np.ones(shape[0], dtype=np.int64)
        lengths[: len(self)] = self.lengths
        mask = np.arange(shape[1]) < lengths[:, None]
        filled = mask.copy()
        filled[len(self) :] = False
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        ids[filled] = self.input_ids
        inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if self.token_types is not None:
            types = np.zeros(shape, dtype=np.int64)
            types[filled] = self.token_types
            inputs["token_type_ids"] = types
        return inputs

    def slice(self, start: int, stop: int) -> "PairBatch":
        """The pairs `start` to `stop`."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        tokens = slice(int(ends[start]), int(ends[stop]))
        types = None if self.token_types is None else self.token_types[tokens]
        return PairBatch(self.input_ids[tokens], types, self.lengths[start:stop], self.pad_id)
