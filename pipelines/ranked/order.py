"""The order in which a round's lists are seen from the second epoch on, fixed by numbers alone.

Enters: the size of a round, a seed, an epoch. Leaves: windows of blocks. A block is a run of consecutive chunks that
are read together; blocks are shuffled over the whole round, rows within a window of blocks. So memory holds a window, a
seek reads one, and a round that is no larger than a window is shuffled as a whole. (The first epoch takes chunks as
they are numbered, so that training begins with the first that is there; queries were shuffled before chunking.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RoundShape", "Window", "windows_from"]

BLOCK_ROWS = 1024
"""A block is about one row group of a compacted file."""
WINDOW_BLOCKS = 8


@dataclass(frozen=True)
class RoundShape:
    """A round of `num_rows` lists in chunks of `rows_per_chunk`, the last one smaller."""

    num_rows: int
    rows_per_chunk: int

    @property
    def chunks_per_block(self) -> int:
        """At least one."""
        return max(1, BLOCK_ROWS // self.rows_per_chunk)

    @property
    def num_chunks(self) -> int:
        """Chunks of the round."""
        return -(-self.num_rows // self.rows_per_chunk)

    @property
    def rows_per_block(self) -> int:
        """Of every block but the last."""
        return self.chunks_per_block * self.rows_per_chunk

    def block_sizes(self) -> npt.NDArray[np.int64]:
        """Rows of each block."""
        sizes = np.full(-(-self.num_rows // self.rows_per_block), self.rows_per_block, dtype=np.int64)
        if len(sizes):
            sizes[-1] = self.num_rows - self.rows_per_block * (len(sizes) - 1)
        return sizes


@dataclass(frozen=True, eq=False)
class Window:
    """Blocks that are in memory together, and the order in which their rows are seen."""

    blocks: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    """Which row of the blocks, put one after the other, is seen when."""
    first_place: int
    """Place of the first of them in the epoch."""


def windows_from(shape: RoundShape, *, epoch: int, seed: int, ordinal: int) -> Iterator[Window]:
    """The epoch's windows from the one that holds place `ordinal` on.

    Args:
        shape: of the round.
        epoch: which one.
        seed: of the order.
        ordinal: a place of the epoch, from 0; nothing before its window is looked at.
    """
    sizes = shape.block_sizes()
    order = np.random.default_rng((seed, epoch)).permutation(len(sizes))
    places = np.concatenate([[0], np.cumsum(sizes[order])])
    first_block = int(np.searchsorted(places, ordinal, side="right")) - 1
    for begin in range(first_block - first_block % WINDOW_BLOCKS, len(order), WINDOW_BLOCKS):
        blocks = order[begin : begin + WINDOW_BLOCKS]
        rows = np.random.default_rng((seed, epoch, begin)).permutation(int(sizes[blocks].sum()))
        yield Window(tuple(blocks.tolist()), rows, int(places[begin]))
