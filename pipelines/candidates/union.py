"""The union of the sources: one list of candidates per query, with each source's rank kept.

Enters: what BM25 and the student found (document rows), and judgements. Leaves: a table of
`CANDIDATES_SCHEMA`. Order of the mined documents: reciprocal-rank fusion, sum of 1 / (60 + rank) with ranks
from 0 (Cormack, Clarke, Buettcher, SIGIR 2009). Judged positives stand first and are always kept: the teacher
scores them too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.candidates.schema import CANDIDATE_TYPE, CANDIDATES_SCHEMA

__all__ = ["RRF_CONSTANT", "mine"]

RRF_CONSTANT = 60


class _Found(NamedTuple):
    bm25_rank: int | None = None
    dense_rank: int | None = None
    student_score: float | None = None

    @property
    def fused(self) -> float:
        return sum(1 / (RRF_CONSTANT + rank) for rank in (self.bm25_rank, self.dense_rank) if rank is not None)


def mine(
    query_ids: Sequence[str],
    *,
    judged: Mapping[str, Mapping[int, int]],
    doc_ids: Sequence[str],
    passages: Sequence[str],
    bm25_rows: np.ndarray | None = None,
    dense: tuple[np.ndarray, np.ndarray] | None = None,
    max_candidates: int,
) -> pa.Table:
    """Fuse the sources into one row per query.

    Documents that are no positive but read exactly as one of the query's positives are left out: as negatives
    they would contradict it. Documents judged 0 stay where the sources found them, with relevance 0.

    Args:
        query_ids: the queries, in the order of the arrays' first axis.
        judged: query_id -> document row -> relevance (`Dataset.judged_rows`); queries without labels are
            absent. Give {} for test queries, whose positives must not be slipped in.
        doc_ids: document row -> id.
        passages: document row -> what models read of it (`Dataset.passages`).
        bm25_rows: int64 [queries, k], best first, -1 = nothing more found (`BM25Index.search`).
        dense: rows int64 and scores float32 [queries, k] (`top_k_inner_product`).
        max_candidates: per query, positives included; positives stay even if they are more.

    Returns:
        A table of `CANDIDATES_SCHEMA`; a list is empty where nothing was found.

    Raises:
        ValueError: both sources are missing, or an array has another number of queries.
    """
    _check(len(query_ids), bm25_rows, dense)
    rows: list[int] = []
    found: list[_Found] = []
    relevance: list[int | None] = []
    offsets = [0]
    for position, query_id in enumerate(query_ids):
        labels = judged.get(query_id, {})
        sources = _found(position, bm25_rows, dense)
        chosen = _choose(sources, labels, passages, max_candidates)
        rows += chosen
        found += [sources.get(row, _Found()) for row in chosen]
        relevance += [labels.get(row) for row in chosen]
        offsets.append(len(rows))
    columns = {
        "doc_id": [doc_ids[row] for row in rows],
        "student_score": [item.student_score for item in found],
        "bm25_rank": [item.bm25_rank for item in found],
        "dense_rank": [item.dense_rank for item in found],
        "relevance": relevance,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in CANDIDATE_TYPE]
    structs = pa.StructArray.from_arrays(arrays, fields=list(CANDIDATE_TYPE))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)
    return pa.Table.from_arrays([pa.array(list(query_ids), pa.string()), lists], schema=CANDIDATES_SCHEMA)


def _found(
    position: int, bm25_rows: np.ndarray | None, dense: tuple[np.ndarray, np.ndarray] | None
) -> dict[int, _Found]:
    found: dict[int, _Found] = {}
    if bm25_rows is not None:
        for rank, row in enumerate(bm25_rows[position].tolist()):
            if row >= 0:
                found[row] = _Found(bm25_rank=rank)
    if dense is not None:
        pairs = zip(dense[0][position].tolist(), dense[1][position].tolist(), strict=True)
        for rank, (row, score) in enumerate(pairs):
            if row >= 0:
                found[row] = found.get(row, _Found())._replace(dense_rank=rank, student_score=score)
    return found


def _choose(
    found: Mapping[int, _Found], labels: Mapping[int, int], passages: Sequence[str], max_candidates: int
) -> list[int]:
    positives = sorted((row for row, grade in labels.items() if grade > 0), key=lambda row: (-labels[row], row))
    positive_texts = {passages[row] for row in positives}
    mined = [row for row in found if labels.get(row, 0) <= 0 and passages[row] not in positive_texts]
    mined.sort(key=lambda row: (-found[row].fused, row))
    return positives + mined[: max(0, max_candidates - len(positives))]


def _check(num_queries: int, bm25_rows: np.ndarray | None, dense: tuple[np.ndarray, np.ndarray] | None) -> None:
    if bm25_rows is None and dense is None:
        raise ValueError("mine needs bm25_rows, dense, or both")
    arrays = {"bm25_rows": bm25_rows}
    if dense is not None:
        arrays |= {"dense rows": dense[0], "dense scores": dense[1]}
    for name, array in arrays.items():
        if array is not None and len(array) != num_queries:
            raise ValueError(f"{name} holds {len(array)} queries, expected {num_queries}")
