"""The chunks of a round as they go to the teacher: candidates, and what is known about their pairs.

Enters: the candidates of a round, a table, the teacher's version. Leaves: `AskedChunk`s, one at a time; in memory is
one window of the round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ranked.known import KnownLogits
from pipelines.ranked.table import RankedLists

__all__ = ["AskedChunk", "CandidateRows", "ChunkLookup", "list_lengths", "round_shape"]

_WINDOW_QUERIES = 1024
"""Known logits are looked up for about so many queries at once."""


class CandidateRows(Protocol):
    """The candidates of a round: a table, or a file that is read piece by piece."""

    def __len__(self) -> int:
        """Queries."""
        ...

    def slice(self, offset: int, length: int) -> pa.Table:
        """Rows `offset` and following, `length` of them or as many as there are."""
        ...


@dataclass(frozen=True, eq=False)
class AskedChunk:
    """A chunk whose new pairs are with the teacher."""

    candidates: pa.Table
    logits: npt.NDArray[np.float32]
    """Known ones, NaN elsewhere."""
    weights_version: int
    """Of the known ones."""

    def new_pairs(self) -> list[tuple[str, str]]:
        """(query_id, doc_id) of the pairs whose logit is not known, in order."""
        new = np.flatnonzero(np.isnan(self.logits))
        if not len(new):
            return []
        lists = self.candidates["candidates"].combine_chunks()
        query_of = np.repeat(np.arange(len(self.candidates)), list_lengths(self.candidates))
        query_ids = self.candidates["query_id"].take(pa.array(query_of[new])).to_pylist()
        doc_ids = lists.flatten().field("doc_id").take(pa.array(new)).to_pylist()
        return list(zip(query_ids, doc_ids, strict=True))

    def without_known(self, weights_version: int) -> "AskedChunk":
        """The same chunk when nothing is known of it under these weights."""
        return AskedChunk(self.candidates, np.full_like(self.logits, np.nan), weights_version)


class ChunkLookup:
    """Chunks of a round with what is known about their pairs; reads one window of the round at a time."""

    def __init__(
        self,
        candidates: CandidateRows,
        query_ids: Sequence[str],
        lists: RankedLists,
        *,
        own: tuple[str, int],
        rows_per_chunk: int,
        scratch: Path,
    ) -> None:
        self._candidates = candidates
        self._query_ids = query_ids
        self._lists = lists
        self._own = own
        self._rows_per_chunk = rows_per_chunk
        self._scratch = scratch
        self._window = window_of(rows_per_chunk)
        self._known: KnownLogits | None = None
        self._at = -1
        self._rows = pa.table({})
        self._logits: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._offsets: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)

    def chunk(self, chunk_id: int, weights_version: int) -> AskedChunk:
        """The chunk's candidates and their logits under that version."""
        if self._known is None or self._known.weights_version != weights_version:
            self.close()
            self._known = KnownLogits(
                self._lists,
                self._query_ids,
                weights_version=weights_version,
                own=self._own,
                folder=self._scratch,
                window=self._window,
            )
        first = chunk_id * self._rows_per_chunk
        begin = first - first % self._window
        if begin != self._at:
            self._at, self._rows = begin, self._candidates.slice(begin, self._window)
            self._logits = self._known.logits(self._rows, begin)
            self._offsets = np.concatenate([[0], np.cumsum(list_lengths(self._rows))])
        rows = self._rows.slice(first - begin, self._rows_per_chunk)
        logits = self._logits[self._offsets[first - begin] : self._offsets[first - begin + len(rows)]]
        return AskedChunk(rows, logits, weights_version)

    def close(self) -> None:
        """Remove what lies in the scratch folder."""
        if self._known is not None:
            self._known.close()
        self._known, self._at = None, -1


def round_shape(candidates: CandidateRows, rows_per_chunk: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Query ids of the round, and how many candidates each has; read piece by piece."""
    step = window_of(rows_per_chunk)
    query_ids: list[str] = []
    lengths = [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(candidates), step):
        rows = candidates.slice(begin, step)
        query_ids += rows["query_id"].to_pylist()
        lengths.append(list_lengths(rows))
    return query_ids, np.concatenate(lengths)


def window_of(rows_per_chunk: int) -> int:
    """Queries that are looked up together: whole chunks."""
    return rows_per_chunk * max(1, _WINDOW_QUERIES // rows_per_chunk)


def list_lengths(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Candidates of each list, [rows]."""
    return np.asarray(pc.fill_null(pc.list_value_length(rows["candidates"]), 0), dtype=np.int64)
