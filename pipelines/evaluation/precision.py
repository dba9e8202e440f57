"""What int8 and binary embeddings cost: the same queries searched in quantised documents, beside float32.

Enters: float32 embeddings of test queries and documents, judgements. Leaves: measures per precision, and the loss.
Codes are sentence-transformers' `quantize_embeddings`, so whoever follows the model card gets the same ones.

    int8             float32 queries x documents, each dimension in 256 steps over its range in the corpus (FAISS's SQ8)
    binary           signs of queries x signs of documents: the Hamming distance of a binary index
    binary_rescored  the first `RESCORE_MULTIPLIER` times as many of those, ordered by float32 query x signs of document

A score of codes is an inner product of what they stand for, so all three are exact searches. Documents are quantised
block by block: memory does not grow with the corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import PerQuery, evaluate, means
from pipelines.spec import ExportPrecision

__all__ = ["RESCORE_MULTIPLIER", "PrecisionResult", "int8_ranges", "measure_precisions"]

RESCORE_MULTIPLIER = 4
"""Candidates per result that a binary search hands on, as sentence-transformers' examples have it."""
_BLOCK = 65_536

Floats = npt.NDArray[np.float32]
Search = Callable[[Floats, Floats, int], tuple[npt.NDArray[np.int64], Floats]]
"""Exact inner-product search: queries, documents, how many; rows and scores, best first, equal ones by row."""


@dataclass(frozen=True)
class PrecisionResult:
    """One way to search quantised embeddings.

    Attributes:
        search: `int8`, `binary` or `binary_rescored`.
        bytes_per_embedding: in the index.
        measures: measure -> mean over the test queries.
        loss: measure -> float32's mean less this one; negative where quantising happened to help.
    """

    search: Literal["int8", "binary", "binary_rescored"]
    bytes_per_embedding: int
    measures: dict[str, float]
    loss: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)


def int8_ranges(documents: Floats) -> Floats:
    """Lowest and highest value of each dimension over the corpus, float32 [2, dim]: what int8 codes count from.

    Args:
        documents: float32 [documents, dim], at least one; may be a memory map.
    """
    blocks = [(block.min(axis=0), block.max(axis=0)) for _, block in _blocks(documents)]
    lowest, highest = zip(*blocks, strict=True)
    return np.stack([np.min(lowest, axis=0), np.max(highest, axis=0)]).astype(np.float32)


def measure_precisions(
    queries: Floats,
    documents: Floats,
    *,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    float32: PerQuery,
    precisions: Sequence[ExportPrecision],
    search: Search,
    depth: int,
) -> tuple[PrecisionResult, ...]:
    """Measure each precision on the queries that float32 was measured on.

    Args:
        queries: [queries, dim], as the student serves them.
        documents: [documents, dim].
        query_ids: of the rows of `queries`.
        doc_ids: of the rows of `documents`.
        qrels: judgements, as in `evaluate`.
        float32: what `evaluate` gave for the same embeddings unquantised.
        precisions: `binary` gives two results, as it comes and rescored.
        search: how exact inner-product search is done.
        depth: documents of a run.

    Raises:
        PipelineError: embeddings and ids, or the queries of the two measurements, do not fit together.
    """
    for name, array, ids in (("queries", queries, query_ids), ("documents", documents, doc_ids)):
        if len(array) != len(ids):
            raise PipelineError(f"precisions: {len(array)} embeddings of {name} have {len(ids)} ids")
    found: list[PrecisionResult] = []

    def measured(name: Literal["int8", "binary", "binary_rescored"], size: int, rows: Any, scores: Any) -> None:
        run = {
            query_id: {doc_ids[row]: float(score) for row, score in zip(rows[i], scores[i], strict=True)}
            for i, query_id in enumerate(query_ids)
        }
        per_query = evaluate(qrels, run, tuple(float32))
        if any(per_query[measure].keys() != values.keys() for measure, values in float32.items()):
            raise PipelineError(f"precisions: {name} and float32 were measured on different queries")
        here, there = means(per_query), means(float32)
        found.append(PrecisionResult(name, size, here, {key: there[key] - here[key] for key in here}))

    dimension = documents.shape[1]
    if "int8" in precisions:
        ranges = int8_ranges(documents)
        measured("int8", dimension, *_search(queries, documents, partial(_levels, ranges=ranges), search, depth))
    if "binary" in precisions:
        size = (dimension + 7) // 8
        wide = _search(_signs(queries), documents, _signs, search, RESCORE_MULTIPLIER * depth)
        measured("binary", size, *(values[:, :depth] for values in wide))
        measured("binary_rescored", size, *_rescored(queries, documents, wide[0], depth))
    return tuple(found)


def _search(
    queries: Floats, documents: Floats, decode: Callable[[Floats], Floats], search: Search, depth: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    rows = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    for start, block in _blocks(documents):
        fresh, values = search(queries, decode(block), min(depth, len(block)))
        # Kept rows are lower and stand first, so a stable sort settles ties by row.
        rows, scores = np.hstack([rows, fresh + start]), np.hstack([scores, values])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return rows, scores


def _rescored(
    queries: Floats, documents: Floats, rows: npt.NDArray[np.int64], depth: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    scores = np.stack([_signs(documents[found]) @ query for query, found in zip(queries, rows, strict=True)])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _levels(embeddings: Floats, ranges: Floats) -> Floats:
    """What int8 codes stand for, less one vector: a query's scores move by a constant, its ranking does not."""
    levels: Floats = _codes(embeddings, "int8", ranges).astype(np.float32) * ((ranges[1] - ranges[0]) / 255)
    return levels


def _signs(embeddings: Floats) -> Floats:
    """What binary codes stand for: 1 where a bit is set, else -1."""
    bits = np.unpackbits(_codes(embeddings, "ubinary"), axis=1, count=embeddings.shape[1])
    return bits.astype(np.float32) * 2 - 1


def _codes(embeddings: Floats, precision: str, ranges: Floats | None = None) -> Any:
    from sentence_transformers.util import quantize_embeddings

    return quantize_embeddings(np.asarray(embeddings), precision=precision, ranges=ranges)


def _blocks(documents: Floats) -> Iterator[tuple[int, Floats]]:
    for start in range(0, len(documents), _BLOCK):
        yield start, np.asarray(documents[start : start + _BLOCK])
