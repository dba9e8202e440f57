"""The few negatives of each query that an adversarial round works with, drawn from the many that were mined.

Enters: mined candidates, block by block. Leaves: the same queries with all their judged positives and at most `count`
others, in mined order. What is drawn for a query depends on (seed, round, its place) only.

    uniform  as AR2 does from the top of the retriever's list (arXiv 2110.03611)
    simans   likelier the nearer the student's score is to that of the positive (SimANS, EMNLP 2022); where the student
             did not find a positive, the last ones, as its official code does

Where fewer are there, a list is shorter; the official code repeats it, and so counts some negatives twice.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.objectives.simans import draw_simans
from pipelines.spec import AdversarialSpec

__all__ = ["sampled_negatives"]


def sampled_negatives(
    blocks: Iterable[pa.Table], settings: AdversarialSpec, *, count: int, seed: int, round_number: int
) -> Iterator[pa.Table]:
    """Blocks of the candidates schema, each query with its positives and `count` sampled negatives.

    Args:
        blocks: of the candidates schema, in the round's order.
        settings: how to draw.
        count: negatives per query.
        seed: of the job.
        round_number: another one draws others.
    """
    place = 0
    for block in blocks:
        column = block["candidates"].combine_chunks()
        lengths = np.asarray(column.value_lengths().fill_null(0), dtype=np.int64)
        items = column.flatten()
        relevance = np.asarray(items.field("relevance").fill_null(0))
        scores = np.asarray(items.field("student_score").cast(pa.float64()).fill_null(np.nan))
        ends = np.cumsum(lengths)
        kept = []
        for number, end in enumerate(ends.tolist()):
            start = end - int(lengths[number])
            rng = np.random.default_rng((seed, 4, round_number, place + number))
            kept.append(start + _chosen(relevance[start:end], scores[start:end], settings, count=count, rng=rng))
        place += len(block)
        yield _taken(block, items, kept)


def _chosen(
    relevance: npt.NDArray[Any],
    scores: npt.NDArray[np.float64],
    settings: AdversarialSpec,
    *,
    count: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Places in one list."""
    positives, others = np.flatnonzero(relevance > 0), np.flatnonzero(relevance <= 0)
    if len(others) <= count:
        return np.sort(np.concatenate([positives, others]))
    if settings.sampling == "uniform":
        drawn = rng.choice(others, size=count, replace=False)
    else:
        drawn = others[_simans(scores[others], scores[positives], settings, count=count, rng=rng)]
    return np.sort(np.concatenate([positives, drawn]))


def _simans(
    scores: npt.NDArray[np.float64],
    of_positives: npt.NDArray[np.float64],
    settings: AdversarialSpec,
    *,
    count: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Places among the negatives; those that the student did not score come in where the others are too few."""
    known = np.flatnonzero(np.isfinite(scores))
    found = of_positives[np.isfinite(of_positives)]
    if not len(found):
        return np.arange(len(scores) - count, len(scores))
    drawn = known[
        draw_simans(
            scores[known], float(found.max()), count=count, rng=rng, a=settings.a, b=settings.b, form=settings.form
        )
    ]
    unknown = np.flatnonzero(~np.isfinite(scores))[: count - len(drawn)]
    return np.concatenate([drawn, unknown])


def _taken(block: pa.Table, items: pa.StructArray, kept: list[npt.NDArray[np.int64]]) -> pa.Table:
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in kept])]).astype(np.int32)
    rows = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    lists = pa.ListArray.from_arrays(pa.array(offsets), items.take(pa.array(rows.astype(np.int64))))
    at = block.schema.get_field_index("candidates")
    return block.set_column(at, block.schema.field(at), lists)
