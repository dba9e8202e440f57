"""Follow a table of ranked lists while it grows: rows in (round, chunk, row) order, whatever order they arrived in.

Enters: a job, a round, how many chunks it will have, and a position. Leaves: rows, each with the position after it.
Order is fixed by numbers and never by arrival, so neither the number of teacher replicas nor a crash changes what
the student sees. A position is (epoch, ordinal): chunks have equal size, so an ordinal names its chunk and row and
resuming opens exactly one file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.ranked.table import RankedLists

__all__ = ["RankedRow", "StreamPosition", "follow"]


@dataclass(frozen=True, order=True)
class StreamPosition:
    """The next row to read: `ordinal` counts a round's rows in chunk order, before any later epoch's permutation."""

    epoch: int = 0
    ordinal: int = 0


@dataclass(frozen=True)
class RankedRow:
    """One query's ranked list. Arrays are [candidates], in teacher order, best first."""

    query_id: str
    doc_ids: tuple[str, ...]
    teacher_logits: npt.NDArray[np.float32]
    relevance: npt.NDArray[np.int16]
    """Judged grade, or -1 where unjudged."""


def follow(
    lists: RankedLists,
    *,
    job_id: str,
    round_number: int,
    num_rows: int,
    rows_per_chunk: int,
    start: StreamPosition,
    epochs: int,
    seed: int,
    wait: Callable[[], None],
) -> Iterator[tuple[RankedRow, StreamPosition]]:
    """Rows of `epochs` passes from `start` on, with the position that follows each.

    Epoch 0 takes chunks in number order as they are committed (queries were shuffled before chunking); later
    epochs visit all rows in an order drawn from (seed, epoch).

    Args:
        lists: the table.
        job_id: whose lists.
        round_number: which round of them.
        num_rows: queries in the round.
        rows_per_chunk: queries in every chunk but the last.
        start: where to begin, for resuming.
        epochs: passes over the round.
        seed: of the later epochs' order.
        wait: called while a needed chunk is not committed; must block a moment, and raise if it never will be.
    """
    chunks = _Chunks(lists, job_id=job_id, round_number=round_number, wait=wait)
    for epoch in range(start.epoch, epochs):
        order = np.arange(num_rows)
        if epoch > 0:
            np.random.default_rng((seed, epoch)).shuffle(order)
        first = start.ordinal if epoch == start.epoch else 0
        for place in range(first, num_rows):
            chunk_id, row = divmod(int(order[place]), rows_per_chunk)
            following = StreamPosition(epoch, place + 1) if place + 1 < num_rows else StreamPosition(epoch + 1, 0)
            yield _row(chunks.get(chunk_id), row), following


class _Chunks:
    """Chunks by number, each read once (a job's lists fit memory many times over: ids and a few numbers per pair)."""

    def __init__(self, lists: RankedLists, *, job_id: str, round_number: int, wait: Callable[[], None]) -> None:
        self._lists = lists
        self._job_id = job_id
        self._round_number = round_number
        self._wait = wait
        self._files: dict[int, str] = {}
        self._read: dict[int, pa.Table] = {}

    def get(self, chunk_id: int) -> pa.Table:
        while chunk_id not in self._files:
            self._files = self._lists.chunk_files(self._job_id, self._round_number)
            if chunk_id not in self._files:
                self._wait()
        if chunk_id not in self._read:
            self._read[chunk_id] = self._lists.read_chunk(self._files[chunk_id], chunk_id=chunk_id)
        return self._read[chunk_id]


def _row(chunk: pa.Table, row: int) -> RankedRow:
    candidates = chunk["candidates"][row].as_py() or []
    return RankedRow(
        query_id=chunk["query_id"][row].as_py(),
        doc_ids=tuple(item["doc_id"] for item in candidates),
        teacher_logits=np.array([item["teacher_logit"] for item in candidates], dtype=np.float32),
        relevance=np.array(
            [-1 if item["relevance"] is None else item["relevance"] for item in candidates], dtype=np.int16
        ),
    )
