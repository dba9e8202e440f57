"""Mined candidates of labelled queries as a training stream, before or without any teacher.

Enters: a candidates table whose queries have judged positives. Leaves: the same rows and positions as a ranked
stream, teacher logits zero. Two learners read it: the ranker that becomes the teacher, and the label-only control.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError
from pipelines.ranked.tail import RankedRow, StreamPosition

__all__ = ["labelled_rows"]


def labelled_rows(
    candidates: pa.Table, *, start: StreamPosition, seed: int
) -> Iterator[tuple[RankedRow, StreamPosition]]:
    """Rows from `start` on, without end: each epoch in an order drawn from (seed, epoch).

    Raises:
        DataError: no list has both a positive and something to put below it, so that there would never be a step.
    """
    rows = [_row(query_id, items) for query_id, items in zip(*_columns(candidates), strict=True)]
    rows = [row for row in rows if (row.relevance > 0).any() and (row.relevance <= 0).any()]
    if not rows:
        raise DataError(
            f"none of {len(candidates)} labelled queries has both a positive and another candidate to learn from"
        )
    epoch, first = start.epoch, start.ordinal
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        for place in range(first, len(rows)):
            last = place + 1 == len(rows)
            yield (
                rows[order[place]],
                StreamPosition(epoch + 1, 0) if last else StreamPosition(epoch, place + 1),
            )
        epoch, first = epoch + 1, 0


def _columns(candidates: pa.Table) -> tuple[list[str], list[list[dict[str, object]]]]:
    return candidates["query_id"].to_pylist(), candidates["candidates"].to_pylist()


def _row(query_id: str, items: list[dict[str, object]]) -> RankedRow:
    return RankedRow(
        query_id=query_id,
        doc_ids=tuple(str(item["doc_id"]) for item in items),
        teacher_logits=np.zeros(len(items), dtype=np.float32),
        relevance=np.array([-1 if item["relevance"] is None else item["relevance"] for item in items], dtype=np.int16),
    )
