"""Mined candidates on disk: written block by block, read by slices, never whole in memory.

Enters: blocks of candidates, as a miner yields them. Leaves: one Parquet file, a row group or more per block, and a
`CandidatesFile` that is used like the table (`len`, `slice`) and keeps one row group of it in memory. A round of a
million queries has tens of millions of candidates, and whoever reads them walks through them in order.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.whole_files import whole_file

__all__ = ["CandidatesFile", "num_pairs", "write_candidates"]

_SMALLEST_COLUMN = "candidates.list.element.relevance"


class CandidatesFile:
    """The candidates table in the Parquet file at `path`, which must not change; threads may share it.

    A slice reads the row groups it lies in. The last one decoded is kept, so neighbouring slices cost one read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pq.ParquetFile(path)
        sizes = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._lock = Lock()
        self._last: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def slice(self, offset: int = 0, length: int | None = None) -> pa.Table:
        """The rows from `offset` on, `length` of them or as many as there are: what `pa.Table.slice` gives.

        Raises:
            IndexError: `offset` or `length` is negative.
        """
        if offset < 0 or (length is not None and length < 0):
            raise IndexError(f"offset and length must not be negative, got {offset=}, {length=}")
        end = len(self) if length is None else min(len(self), offset + length)
        if offset >= end:
            return self._file.schema_arrow.empty_table()
        first, last = np.searchsorted(self._starts, [offset, end - 1], side="right") - 1
        groups = [self._group(number) for number in range(first, last + 1)]
        table = groups[0] if len(groups) == 1 else pa.concat_tables(groups)
        return table.slice(offset - int(self._starts[first]), end - offset)

    def blocks(self) -> Iterator[pa.Table]:
        """The whole table in order, one row group in memory at a time."""
        for number in range(len(self._starts) - 1):
            yield self._group(number)

    def read(self) -> pa.Table:
        """The whole table, in memory: for sets known to be small."""
        return self._file.read()

    @cached_property
    def num_pairs(self) -> int:
        """Candidates of all queries together."""
        groups = (
            self._file.read_row_group(number, columns=[_SMALLEST_COLUMN]) for number in range(len(self._starts) - 1)
        )
        with self._lock:
            return sum(num_pairs(group) for group in groups)

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            if self._last is None or self._last[0] != number:
                self._last = None  # let the old one go before the new one is decoded
                self._last = (number, self._file.read_row_group(number))
            return self._last[1]


def write_candidates(path: Path, blocks: Iterable[pa.Table]) -> CandidatesFile:
    """Write `blocks`, tables of `CANDIDATES_SCHEMA`, one after the other; the file gets its name when it is whole.

    What an earlier attempt left behind is overwritten. If `blocks` raises, there is no file.
    """
    with whole_file(path) as scratch, pq.ParquetWriter(scratch, CANDIDATES_SCHEMA) as writer:
        for block in blocks:
            writer.write_table(block)
    return CandidatesFile(path)


def num_pairs(candidates: pa.Table | CandidatesFile) -> int:
    """Candidates of all queries together."""
    if isinstance(candidates, CandidatesFile):
        return candidates.num_pairs
    return pc.sum(pc.list_value_length(candidates["candidates"])).as_py() or 0
