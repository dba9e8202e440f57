"""The union keeps every rank, never loses or negates a positive, and orders by reciprocal-rank fusion."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.candidates.union import mine

DOC_IDS = [f"d{row}" for row in range(8)]
PASSAGES = [f"text {row}" for row in range(7)] + ["text 0"]  # d7 reads as d0


def mined(**fields: Any) -> list[list[dict[str, Any]]]:
    given = {"judged": {}, "doc_ids": DOC_IDS, "passages": PASSAGES, "max_candidates": 8} | fields
    table = mine(**given)
    assert table.schema.equals(CANDIDATES_SCHEMA)
    table.validate(full=True)
    lists: list[list[dict[str, Any]]] = table["candidates"].to_pylist()
    return lists


def rows(*lists: list[int]) -> np.ndarray:
    return np.array(lists, dtype=np.int64)


def scores(*lists: list[float]) -> np.ndarray:
    return np.array(lists, dtype=np.float32)


def test_ranks_and_scores_of_both_sources_are_kept() -> None:
    found = mined(query_ids=["q"], bm25_rows=rows([3, 1, -1]), dense=(rows([1, 2, 4]), scores([0.5, 0.25, 0.125])))[0]
    # Fused: d1 has ranks 1 and 0, d3 rank 0, d2 rank 1, d4 rank 2.
    assert found == [
        {"doc_id": "d1", "student_score": 0.5, "bm25_rank": 1, "dense_rank": 0, "relevance": None},
        {"doc_id": "d3", "student_score": None, "bm25_rank": 0, "dense_rank": None, "relevance": None},
        {"doc_id": "d2", "student_score": 0.25, "bm25_rank": None, "dense_rank": 1, "relevance": None},
        {"doc_id": "d4", "student_score": 0.125, "bm25_rank": None, "dense_rank": 2, "relevance": None},
    ]


def test_positives_stand_first_with_their_ranks_and_zeros_stay_where_they_were_found() -> None:
    judged = {"q": {5: 1, 2: 3, 3: 0, 6: 0}}
    found = mined(query_ids=["q"], judged=judged, bm25_rows=rows([3, 2, 1]))[0]
    assert [(c["doc_id"], c["relevance"], c["bm25_rank"]) for c in found] == [
        ("d2", 3, 1),
        ("d5", 1, None),
        ("d3", 0, 0),
        ("d1", None, 2),
    ]


def test_a_copy_of_the_positive_is_no_negative() -> None:
    found = mined(query_ids=["q", "r"], judged={"q": {0: 1}}, bm25_rows=rows([7, 0, 1], [7, 0, 1]))
    assert [c["doc_id"] for c in found[0]] == ["d0", "d1"]
    assert [c["doc_id"] for c in found[1]] == ["d7", "d0", "d1"], "unlabelled: nothing to contradict"


def test_the_limit_counts_positives_but_never_drops_one() -> None:
    judged = {"q": {0: 1, 1: 1, 2: 1}}
    for limit, expected in ((2, ["d0", "d1", "d2"]), (4, ["d0", "d1", "d2", "d6"])):
        found = mined(query_ids=["q"], judged=judged, bm25_rows=rows([6, 5, 4]), max_candidates=limit)[0]
        assert [c["doc_id"] for c in found] == expected


def test_equal_fusion_goes_to_the_lower_row() -> None:
    found = mined(query_ids=["q"], bm25_rows=rows([6, 4]), dense=(rows([4, 6]), scores([2, 1])))[0]
    assert [c["doc_id"] for c in found] == ["d4", "d6"]


def test_a_query_that_found_nothing_keeps_its_row() -> None:
    table = mine(
        ["q", "r"],
        judged={},
        doc_ids=DOC_IDS,
        passages=PASSAGES,
        bm25_rows=rows([-1], [2]),
        max_candidates=4,
    )
    assert table["query_id"].to_pylist() == ["q", "r"]
    assert [len(c) for c in table["candidates"].to_pylist()] == [0, 1]
    empty = mine([], judged={}, doc_ids=[], passages=[], bm25_rows=rows().reshape(0, 4), max_candidates=4)
    assert empty.equals(pa.Table.from_pylist([], CANDIDATES_SCHEMA))


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="needs bm25_rows, dense, or both"):
        mined(query_ids=["q"])
    with pytest.raises(ValueError, match="bm25_rows holds 2 queries, expected 1"):
        mined(query_ids=["q"], bm25_rows=rows([1], [2]))


_RANKING = st.lists(st.integers(0, 7), unique=True, min_size=4, max_size=4)


@settings(deadline=None)
@given(
    bm25=_RANKING,
    dense=_RANKING,
    labels=st.dictionaries(st.integers(0, 7), st.integers(0, 2), max_size=5),
    limit=st.integers(2, 9),
)
def test_every_list_is_a_set_with_all_positives_and_no_disguised_ones(
    bm25: list[int], dense: list[int], labels: dict[int, int], limit: int
) -> None:
    found = mined(
        query_ids=["q"],
        judged={"q": labels},
        bm25_rows=rows(bm25),
        dense=(rows(dense), scores([4, 3, 2, 1])),
        max_candidates=limit,
    )[0]
    ids = [c["doc_id"] for c in found]
    positives = {DOC_IDS[row] for row, grade in labels.items() if grade > 0}
    positive_texts = {PASSAGES[DOC_IDS.index(doc_id)] for doc_id in positives}
    assert len(set(ids)) == len(ids) <= max(limit, len(positives))
    assert set(ids[: len(positives)]) == positives
    for candidate in found[len(positives) :]:
        row = DOC_IDS.index(candidate["doc_id"])
        assert PASSAGES[row] not in positive_texts
        assert candidate["relevance"] == labels.get(row)
    for candidate in found:
        row = DOC_IDS.index(candidate["doc_id"])
        assert candidate["bm25_rank"] == (bm25.index(row) if row in bm25 else None)
        assert candidate["dense_rank"] == (dense.index(row) if row in dense else None)
