"""Follow a table of ranked lists while it grows: rows in (round, chunk, row) order, whatever order they arrived in.

Enters: a job, a round, its size, and a position. Leaves: rows, each with the position after it. Order is fixed by
numbers and never by arrival (`order.py`), so neither the number of teacher replicas nor a crash nor a compaction
changes what the student sees. A position is (epoch, ordinal): it names its chunk by arithmetic, so resuming reads one
window and replays nothing. While a window is used, the next one is read in the background.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.holds import held
from pipelines.ranked.order import RoundShape, windows_from
from pipelines.ranked.positives import top_probability
from pipelines.ranked.read_ahead import read_ahead
from pipelines.ranked.reader import RoundReader
from pipelines.ranked.table import RankedLists

__all__ = ["RankedRow", "Shard", "StreamPosition", "View", "follow"]

_NO_SCORES: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, order=True)
class StreamPosition:
    """The next row to read: `ordinal` counts an epoch's rows in the order in which they are seen."""

    epoch: int = 0
    ordinal: int = 0


@dataclass(frozen=True)
class Shard:
    """The part of a stream that one of several workers sees: every `world`-th row from the `rank`-th on."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True, eq=False)
class RankedRow:
    """One query's ranked list. Arrays are [candidates], in teacher order, best first."""

    query_id: str
    doc_ids: npt.NDArray[np.object_]
    """str"""
    teacher_logits: npt.NDArray[np.float32]
    relevance: npt.NDArray[np.int16]
    """Judged grade, or -1 where unjudged."""
    student_scores: npt.NDArray[np.float32] = field(default_factory=lambda: _NO_SCORES)
    """By the student that mined the list, NaN where it did not find the candidate; empty unless `follow` was asked."""
    confidence: float = 0.0
    """Softmax probability of the best candidate within the whole stored list, whatever a view left of it."""
    place: StreamPosition = StreamPosition()
    """Where it stands in the stream."""


_SHOWN = ("doc_id", "teacher_logit", "relevance")
View = Callable[[ListColumns], tuple[npt.NDArray[np.bool_], npt.NDArray[np.int16]]]
"""What a reader wants to see of lists: which candidates, and their relevance; both [candidates]."""


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
    shard: Shard = Shard(),
    view: View | None = None,
    student_scores: bool = False,
) -> Iterator[tuple[RankedRow, StreamPosition]]:
    """Rows of `epochs` passes from `start` on, with the position that follows each.

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
        shard: which rows are this worker's; positions are those of the whole stream, so all workers share one.
        view: a filter; None shows everything.
        student_scores: whether rows carry them.
    """
    shape = RoundShape(num_rows, rows_per_chunk)
    fields = None if view else (*_SHOWN, "student_score") if student_scores else _SHOWN

    def pieces(check: Callable[[], None]) -> Iterator[_Piece]:
        def wait_and_check() -> None:
            wait()
            check()
            hold.renew()

        reader = RoundReader(lists, job_id, round_number)
        with closing(reader):
            for epoch in range(start.epoch, epochs):
                reader.refresh()  # a compaction has put many files into few since
                ordinal = start.ordinal if epoch == start.epoch else 0
                for rows, columns, place in _read(reader, shape, epoch, seed, ordinal, wait_and_check, fields):
                    yield _Piece.of(columns, rows, StreamPosition(epoch, place), view, student_scores=student_scores)

    with held(lists.location) as hold, closing(read_ahead(pieces)) as ahead:
        for piece in ahead:
            hold.renew()
            for number in range(len(piece.rows)):
                ordinal = piece.start.ordinal + number
                position = StreamPosition(piece.start.epoch, ordinal)
                if position < start or ordinal % shard.world != shard.rank:
                    continue
                last = ordinal + 1 == num_rows
                yield (
                    piece.row(number, position),
                    (StreamPosition(position.epoch + 1, 0) if last else StreamPosition(position.epoch, ordinal + 1)),
                )


def _read(
    reader: RoundReader,
    shape: RoundShape,
    epoch: int,
    seed: int,
    ordinal: int,
    wait: Callable[[], None],
    fields: Sequence[str] | None,
) -> Iterator[tuple[npt.NDArray[np.int64], ListColumns, int]]:
    """Pieces of an epoch: the order of the rows that were read, the lists, the place of the first in the epoch."""
    if epoch == 0:
        chunk = ordinal // shape.rows_per_chunk
        while chunk < shape.num_chunks:
            ready = _await(reader, chunk, min(shape.chunks_per_block, shape.num_chunks - chunk), wait, at_least=1)
            columns = ListColumns(_rows(reader, shape, chunk, ready, fields))
            yield np.arange(len(columns)), columns, chunk * shape.rows_per_chunk
            chunk += ready
        return
    for window in windows_from(shape, epoch=epoch, seed=seed, ordinal=ordinal):
        parts = []
        for block in window.blocks:
            first = block * shape.chunks_per_block
            count = min(shape.chunks_per_block, shape.num_chunks - first)
            _await(reader, first, count, wait, at_least=count)
            parts.append(_rows(reader, shape, first, count, fields))
        yield window.rows, ListColumns(pa.concat_tables(parts)), window.first_place


def _rows(reader: RoundReader, shape: RoundShape, chunk: int, count: int, fields: Sequence[str] | None) -> pa.Table:
    """`count` chunks, which must have the size that positions are counted by."""
    rows = reader.read(chunk, chunk + count - 1, fields)
    expected = min(count * shape.rows_per_chunk, shape.num_rows - chunk * shape.rows_per_chunk)
    if len(rows) != expected:
        raise RankedListsError(
            f"chunks {chunk} to {chunk + count - 1} hold {len(rows)} lists, expected {expected}: they were cut "
            f"otherwise than in {shape.rows_per_chunk} queries a chunk"
        )
    return rows


def _await(reader: RoundReader, chunk: int, most: int, wait: Callable[[], None], *, at_least: int) -> int:
    """How many chunks from `chunk` on are there, once there are `at_least` so many."""
    ready = reader.ready(chunk, most)
    if ready < most:
        reader.refresh()  # what came since, even if enough is known: fewer and larger reads
        ready = reader.ready(chunk, most)
    while ready < at_least:
        wait()
        reader.refresh()
        ready = reader.ready(chunk, most)
    return ready


@dataclass(frozen=True, eq=False)
class _Piece:
    """Lists that were read together, decoded, as the view wants them."""

    start: StreamPosition
    rows: npt.NDArray[np.int64]
    """Lists in the order in which they are seen."""
    query_ids: npt.NDArray[np.object_]
    offsets: npt.NDArray[np.int64]
    doc_ids: pa.StringArray
    teacher_logits: npt.NDArray[np.float32]
    relevance: npt.NDArray[np.int16]
    student_scores: npt.NDArray[np.float32] | None
    confidence: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        columns: ListColumns,
        rows: npt.NDArray[np.int64],
        start: StreamPosition,
        view: View | None,
        *,
        student_scores: bool,
    ) -> "_Piece":
        offsets, doc_ids = columns.offsets, columns.doc_ids
        logits, relevance = columns.teacher_logit, columns.relevance
        scores = columns.student_score if student_scores else None
        if view is not None:
            kept, relevance = view(columns)
            offsets = np.concatenate([[0], np.cumsum(kept)])[offsets]
            doc_ids, logits, relevance = doc_ids.filter(pa.array(kept)), logits[kept], relevance[kept]
            scores = None if scores is None else scores[kept]
        confidence = np.nan_to_num(top_probability(columns))
        return cls(start, rows, columns.query_id, offsets, doc_ids, logits, relevance, scores, confidence)

    def row(self, number: int, position: StreamPosition) -> RankedRow:
        place = self.rows[number]
        begin, end = self.offsets[place], self.offsets[place + 1]
        part = slice(begin, end)
        return RankedRow(
            query_id=self.query_ids[place],
            doc_ids=self.doc_ids.slice(begin, end - begin).to_numpy(zero_copy_only=False),
            teacher_logits=self.teacher_logits[part],
            relevance=self.relevance[part],
            student_scores=_NO_SCORES if self.student_scores is None else self.student_scores[part],
            confidence=float(self.confidence[place]),
            place=position,
        )
