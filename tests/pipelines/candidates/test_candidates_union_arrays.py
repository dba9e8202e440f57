"""The union over arrays gives, list by list, what the definition gives."""

import numpy as np
from candidates_for_tests import union_by_the_book
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.candidates.union import mine

NUM_DOCUMENTS = 9
DOC_IDS = [f"d{row}" for row in range(NUM_DOCUMENTS)]
PASSAGES = [f"text {row % 6}" for row in range(NUM_DOCUMENTS)]  # three read as another


@st.composite
def rankings(draw: st.DrawFn, num_queries: int) -> np.ndarray:
    width = draw(st.integers(0, 6))
    rows = np.full((num_queries, width), -1, dtype=np.int64)
    for line in rows:
        found = draw(st.lists(st.integers(0, NUM_DOCUMENTS - 1), unique=True, max_size=width))
        line[: len(found)] = found
    return rows


@settings(deadline=None, max_examples=300)
@given(data=st.data(), num_queries=st.integers(0, 5), limit=st.integers(2, 8))
def test_arrays_equal_the_definition(data: st.DataObject, num_queries: int, limit: int) -> None:
    query_ids = [f"q{number}" for number in range(num_queries)]
    grades = st.dictionaries(st.integers(0, NUM_DOCUMENTS - 1), st.integers(-1, 2), max_size=4)
    judged = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(query_ids, grades)))
    bm25_rows = data.draw(st.none() | rankings(num_queries))
    rows = data.draw(rankings(num_queries) if bm25_rows is None else st.none() | rankings(num_queries))
    dense = None
    if rows is not None:
        dense = rows, np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    arguments = {
        "judged": judged,
        "doc_ids": DOC_IDS,
        "passages": PASSAGES,
        "bm25_rows": bm25_rows,
        "dense": dense,
        "max_candidates": limit,
    }
    found = mine(query_ids, **arguments)
    found.validate(full=True)
    assert found.equals(union_by_the_book(query_ids, **arguments))
