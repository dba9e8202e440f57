"""Mined candidates of labelled queries as a training stream, before or without any teacher.

Enters: candidates whose queries have judged positives. Leaves: the same rows and positions as a ranked stream, teacher
logits zero. Two learners read it: the ranker that becomes the teacher, and the label-only control. An epoch visits the
lists in any order, so they are in memory, but as columns of ids and grades, without scores and ranks.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError
from pipelines.ranked.lookup import CandidateRows
from pipelines.ranked.tail import RankedRow, StreamPosition

__all__ = ["blocks", "labelled_rows"]

_BLOCK = 1024


def blocks(candidates: CandidateRows) -> Iterator[pa.Table]:
    """The whole table in order, in tables of `_BLOCK` rows."""
    for start in range(0, len(candidates), _BLOCK):
        yield candidates.slice(start, _BLOCK)


def labelled_rows(
    candidates: CandidateRows, *, start: StreamPosition, seed: int
) -> Iterator[tuple[RankedRow, StreamPosition]]:
    """Rows from `start` on, without end: each epoch in an order drawn from (seed, epoch).

    Raises:
        DataError: no list has both a positive and something to put below it, so that there would never be a step.
    """
    lists = [_learnable(block) for block in blocks(candidates)]
    if not sum(map(len, lists)):
        raise DataError(
            f"none of {len(candidates)} labelled queries has both a positive and another candidate to learn from"
        )
    rows = pa.concat_tables(lists)
    epoch, first = start.epoch, start.ordinal
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        for place in range(first, len(rows)):
            last = place + 1 == len(rows)
            yield (
                _row(rows.slice(order[place], 1), StreamPosition(epoch, place)),
                StreamPosition(epoch + 1, 0) if last else StreamPosition(epoch, place + 1),
            )
        epoch, first = epoch + 1, 0


def _learnable(block: pa.Table) -> pa.Table:
    """Ids and grades of the lists that have a positive and another candidate; -1 = unjudged."""
    column = block["candidates"].combine_chunks()
    items, lengths = column.flatten(), column.value_lengths().to_numpy(zero_copy_only=False)
    grades = items.field("relevance").fill_null(-1)
    of_list = np.repeat(np.arange(len(block)), lengths)
    positive = grades.to_numpy(zero_copy_only=False) > 0
    has_both = [np.bincount(of_list[chosen], minlength=len(block)) > 0 for chosen in (positive, ~positive)]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = {
        "query_id": block["query_id"],
        "doc_ids": pa.ListArray.from_arrays(offsets, items.field("doc_id")),
        "relevance": pa.ListArray.from_arrays(offsets, grades),
    }
    return pa.table(lists).filter(pa.array(has_both[0] & has_both[1]))


def _row(row: pa.Table, place: StreamPosition) -> RankedRow:
    doc_ids = row["doc_ids"][0].as_py()
    return RankedRow(
        query_id=row["query_id"][0].as_py(),
        doc_ids=np.array(doc_ids, dtype=np.object_),
        teacher_logits=np.zeros(len(doc_ids), dtype=np.float32),
        relevance=np.array(row["relevance"][0].as_py(), dtype=np.int16),
        place=place,
    )
