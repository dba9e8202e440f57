"""The union of the sources: one list of candidates per query, with each source's rank kept.

Enters: what BM25 and the student found (document rows), and judgements. Leaves: a table of
`CANDIDATES_SCHEMA`. Order of the mined documents: reciprocal-rank fusion, sum of 1 / (60 + rank) with ranks
from 0 (Cormack, Clarke, Buettcher, SIGIR 2009). Judged positives stand first and are always kept: the teacher
scores them too. Everything is arrays over all queries at once; Python sees only labels, and the texts of queries
that have a positive.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.candidates.schema import CANDIDATE_TYPE, CANDIDATES_SCHEMA

__all__ = ["RRF_CONSTANT", "mine"]

RRF_CONSTANT = 60

_Ints = npt.NDArray[np.int64]


class _Found(NamedTuple):
    """What the sources found: one entry per (query, document), by query and then by row. Rank -1: not found there."""

    query: _Ints
    row: _Ints
    bm25_rank: _Ints
    dense_rank: _Ints
    student_score: npt.NDArray[np.float32]
    key: _Ints


class _Labels(NamedTuple):
    """What is judged, by query and then by row."""

    query: _Ints
    row: _Ints
    grade: _Ints
    key: _Ints


def mine(
    query_ids: Sequence[str],
    *,
    judged: Mapping[str, Mapping[int, int]],
    doc_ids: Sequence[str] | pa.Array,
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
        doc_ids: document row -> id; as an Arrow array of strings it is not copied.
        passages: document row -> what models read of it (`Dataset.passages`).
        bm25_rows: int64 [queries, k], best first, no row twice, -1 = nothing more found (`BM25Index.search`).
        dense: rows int64 and scores float32 [queries, k], likewise (`top_k_inner_product`).
        max_candidates: per query, positives included; positives stay even if they are more.

    Returns:
        A table of `CANDIDATES_SCHEMA`; a list is empty where nothing was found.

    Raises:
        ValueError: both sources are missing, or an array has another number of queries.
    """
    num_queries = len(query_ids)
    _check(num_queries, bm25_rows, dense)
    found = _fuse(bm25_rows, dense, num_documents=max(1, len(passages)))
    labels = _labels(query_ids, judged, num_documents=max(1, len(passages)))
    positives = _positives(labels)
    num_positives = np.bincount(labels.query[positives], minlength=num_queries)
    mined, place = _mined(found, labels, positives, passages, np.maximum(0, max_candidates - num_positives))

    num_mined = np.bincount(found.query[mined], minlength=num_queries)
    offsets = np.concatenate([[0], np.cumsum(num_positives + num_mined)])
    # Where each list's positives, and then its mined documents, go in the flat columns.
    first = offsets[:-1] + num_positives
    at_mined = first[found.query[mined]] + place
    at_positive = _places_within(labels.query[positives], num_queries) + offsets[labels.query[positives]]
    entry = np.empty(offsets[-1], dtype=np.int64)
    entry[at_mined] = mined
    entry[at_positive] = _find(found.key, labels.key[positives])
    label = np.empty(offsets[-1], dtype=np.int64)
    label[at_mined] = _find(labels.key, found.key[mined])
    label[at_positive] = positives
    rows = _where(entry, found.row, otherwise=0)
    rows[at_positive] = labels.row[positives]
    structs = _structs(doc_ids, rows, entry, found, _where(label, labels.grade, otherwise=0), unjudged=label < 0)
    lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), structs)
    return pa.Table.from_arrays([pa.array(list(query_ids), pa.string()), lists], schema=CANDIDATES_SCHEMA)


def _fuse(bm25_rows: np.ndarray | None, dense: tuple[np.ndarray, np.ndarray] | None, *, num_documents: int) -> _Found:
    bm25 = _entries(bm25_rows, num_documents)
    student = _entries(dense[0] if dense else None, num_documents)
    key = np.sort(np.concatenate([bm25[0], student[0]]))
    key = key[np.diff(key, prepend=-1) > 0]  # np.unique would hash, which takes several times as long
    bm25_rank, dense_rank = np.full(len(key), -1, dtype=np.int64), np.full(len(key), -1, dtype=np.int64)
    score = np.zeros(len(key), dtype=np.float32)
    bm25_rank[np.searchsorted(key, bm25[0])] = bm25[2]
    place = np.searchsorted(key, student[0])
    dense_rank[place] = student[2]
    if dense:
        score[place] = dense[1][student[1], student[2]]
    return _Found(key // num_documents, key % num_documents, bm25_rank, dense_rank, score, key)


def _entries(rows: np.ndarray | None, num_documents: int) -> tuple[_Ints, _Ints, _Ints]:
    """(key, query, rank) of each document that a source found."""
    if rows is None:
        rows = np.empty((0, 0), dtype=np.int64)
    query, rank = np.nonzero(rows >= 0)
    return query * num_documents + rows[query, rank], query, rank


def _labels(query_ids: Sequence[str], judged: Mapping[str, Mapping[int, int]], *, num_documents: int) -> _Labels:
    flat = [
        (position, row, grade)
        for position, query_id in enumerate(query_ids)
        if query_id in judged
        for row, grade in sorted(judged[query_id].items())
    ]
    query, row, grade = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    return _Labels(query, row, grade, query * num_documents + row)


def _positives(labels: _Labels) -> _Ints:
    """Places of the positives among the labels: by query, best grade first, then by row."""
    places = np.flatnonzero(labels.grade > 0)
    order: _Ints = places[np.lexsort((labels.row[places], -labels.grade[places], labels.query[places]))]
    return order


def _mined(
    found: _Found, labels: _Labels, positives: _Ints, passages: Sequence[str], limits: _Ints
) -> tuple[_Ints, _Ints]:
    """Places of the chosen entries among those found, in list order, and each one's place in its query's list."""
    kept = _find(labels.key[positives], found.key, sort=True) < 0
    _leave_out_copies(kept, found, labels, positives, passages)
    entries = np.flatnonzero(kept)
    fused = np.zeros(len(entries))
    for ranks in (found.bm25_rank[entries], found.dense_rank[entries]):
        fused += np.where(ranks >= 0, 1 / (RRF_CONSTANT + ranks), 0.0)
    # Entries come by query and row, and the sort is stable: equal fusion goes to the lower row.
    entries = entries[np.lexsort((-fused, found.query[entries]))]
    place = _places_within(found.query[entries], len(limits))
    within = place < limits[found.query[entries]]
    return entries[within], place[within]


def _leave_out_copies(
    kept: npt.NDArray[np.bool_], found: _Found, labels: _Labels, positives: _Ints, passages: Sequence[str]
) -> None:
    by_query: dict[int, set[str]] = {}
    for query, row in zip(labels.query[positives].tolist(), labels.row[positives].tolist(), strict=True):
        by_query.setdefault(query, set()).add(passages[row])
    queries = np.fromiter(by_query, dtype=np.int64, count=len(by_query))
    starts, ends = (np.searchsorted(found.query, queries, side=side).tolist() for side in ("left", "right"))
    for texts, start, end in zip(by_query.values(), starts, ends, strict=True):
        rows = found.row[start:end].tolist()
        kept[start:end] &= np.fromiter((passages[row] not in texts for row in rows), dtype=np.bool_, count=len(rows))


def _structs(
    doc_ids: Sequence[str] | pa.Array,
    rows: _Ints,
    entry: _Ints,
    found: _Found,
    relevance: _Ints,
    *,
    unjudged: npt.NDArray[np.bool_],
) -> pa.StructArray:
    ids = doc_ids if isinstance(doc_ids, pa.Array) else pa.array(doc_ids, pa.string())
    bm25_rank = _where(entry, found.bm25_rank, otherwise=-1)
    dense_rank = _where(entry, found.dense_rank, otherwise=-1)
    arrays = [
        ids.take(pa.array(rows)),
        pa.array(_where(entry, found.student_score, otherwise=0), mask=dense_rank < 0, from_pandas=False),
        pa.array(bm25_rank, mask=bm25_rank < 0).cast(pa.int32()),
        pa.array(dense_rank, mask=dense_rank < 0).cast(pa.int32()),
        pa.array(relevance, mask=unjudged).cast(pa.int8()),
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(CANDIDATE_TYPE))


def _find(keys: _Ints, wanted: _Ints, *, sort: bool = False) -> _Ints:
    """Place of each wanted key among the ascending `keys`, -1 where it is not there."""
    if sort:
        keys = np.sort(keys)
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _where(place: _Ints, values: np.ndarray, *, otherwise: int) -> np.ndarray:
    """`values[place]`, and `otherwise` where the place is -1."""
    if not len(values):
        return np.full(len(place), otherwise, dtype=values.dtype)
    return np.where(place >= 0, values[place], values.dtype.type(otherwise))


def _places_within(group: _Ints, num_groups: int) -> _Ints:
    """0, 1, 2 ... anew in each group of the ascending array `group`."""
    sizes = np.bincount(group, minlength=num_groups)
    return np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _check(num_queries: int, bm25_rows: np.ndarray | None, dense: tuple[np.ndarray, np.ndarray] | None) -> None:
    if bm25_rows is None and dense is None:
        raise ValueError("mine needs bm25_rows, dense, or both")
    arrays = {"bm25_rows": bm25_rows}
    if dense is not None:
        arrays |= {"dense rows": dense[0], "dense scores": dense[1]}
    for name, array in arrays.items():
        if array is not None and len(array) != num_queries:
            raise ValueError(f"{name} holds {len(array)} queries, expected {num_queries}")
