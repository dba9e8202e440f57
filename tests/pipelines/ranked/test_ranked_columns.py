"""Lists as flat arrays are the lists: order, nulls, slices and all."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ranked.columns import NO_RANK, UNJUDGED, ListColumns
from pipelines.ranked.schema import RANKED_SCHEMA

CANDIDATES = st.lists(
    st.fixed_dictionaries(
        {
            "doc_id": st.text(max_size=3),
            "teacher_logit": st.floats(-5, 5, width=32),
            "student_score": st.none() | st.floats(-1, 1, width=32),
            "bm25_rank": st.none() | st.integers(0, 99),
            "dense_rank": st.none() | st.integers(0, 99),
            "relevance": st.none() | st.integers(0, 3),
        }
    ),
    max_size=4,
)


def rows_of(lists: list[list[dict[str, object]]]) -> pa.Table:
    rows = [
        {"job_id": "job", "round": 0, "query_id": f"q{i}", "chunk_id": 0, "weights_version": i, "candidates": items}
        for i, items in enumerate(lists)
    ]
    return pa.Table.from_pylist(rows, schema=RANKED_SCHEMA)


def columns_of(lists: list[list[tuple[float, int | None]]]) -> ListColumns:
    """Lists of (teacher logit, relevance)."""
    nothing = {"student_score": None, "bm25_rank": None, "dense_rank": None}

    def candidate(place: int, logit: float, relevance: int | None) -> dict[str, object]:
        return {"doc_id": f"d{place}", "teacher_logit": logit, "relevance": relevance, **nothing}

    return ListColumns(rows_of([[candidate(i, *item) for i, item in enumerate(items)] for items in lists]))


@given(st.lists(CANDIDATES, max_size=6), st.data())
def test_every_array_holds_what_the_rows_hold(lists: list[list[dict[str, object]]], data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(lists)))
    end = data.draw(st.integers(begin, len(lists)))
    part = lists[begin:end]
    columns = ListColumns(rows_of(lists).slice(begin, end - begin))
    flat = [item for items in part for item in items]
    assert (len(columns), columns.num_candidates) == (len(part), len(flat))
    assert columns.query_id.tolist() == [f"q{i}" for i in range(begin, end)]
    assert columns.weights_version.tolist() == list(range(begin, end))
    assert columns.lengths.tolist() == [len(items) for items in part]
    assert columns.list_of.tolist() == [i for i, items in enumerate(part) for _ in items]
    assert columns.rank.tolist() == [rank for items in part for rank in range(len(items))]
    assert columns.doc_id.tolist() == [item["doc_id"] for item in flat]
    np.testing.assert_array_equal(columns.teacher_logit, [item["teacher_logit"] for item in flat])
    scores = [np.nan if item["student_score"] is None else item["student_score"] for item in flat]
    np.testing.assert_array_equal(columns.student_score, scores)
    for name, missing in (("bm25_rank", NO_RANK), ("dense_rank", NO_RANK), ("relevance", UNJUDGED)):
        assert getattr(columns, name).tolist() == [missing if item[name] is None else item[name] for item in flat]
