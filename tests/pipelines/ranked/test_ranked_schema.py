"""The stored order is the ranking: best logit first, ties as mined, every other column along with its document."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lists_for_tests import candidates_of

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.errors import RankedListsError
from pipelines.ranked.schema import RANKED_SCHEMA, rank_candidates

FILED = {"job_id": "job", "round_number": 2, "chunk_id": 5, "weights_version": 1, "miner": "c0ffee"}


def ranked(table: pa.Table, logits: list[float]) -> pa.Table:
    return rank_candidates(table, np.array(logits, dtype=np.float32), **FILED)


def test_candidates_are_sorted_with_all_their_columns() -> None:
    mined = {"doc_id": "a", "student_score": 0.5, "bm25_rank": 3, "dense_rank": None, "relevance": 1}
    other = {"doc_id": "b", "student_score": None, "bm25_rank": None, "dense_rank": 2, "relevance": None}
    table = pa.Table.from_pylist([{"query_id": "q", "candidates": [mined, other]}], schema=CANDIDATES_SCHEMA)
    out = ranked(table, [-1.0, 2.0])
    assert out.schema.equals(RANKED_SCHEMA)
    out.validate(full=True)
    assert out.to_pylist() == [
        {
            "job_id": "job",
            "round": 2,
            "query_id": "q",
            "chunk_id": 5,
            "weights_version": 1,
            "candidates": [{**other, "teacher_logit": 2.0}, {**mined, "teacher_logit": -1.0}],
            "miner": "c0ffee",
        }
    ]


def test_ties_keep_mined_order_and_lists_do_not_mix() -> None:
    table = candidates_of({"q1": ["a", "b", "c"], "q2": [], "q3": ["d", "e"]})
    out = ranked(table, [1.0, 2.0, 1.0, 5.0, 5.0])
    assert [[item["doc_id"] for item in row] for row in out["candidates"].to_pylist()] == [
        ["b", "a", "c"],
        [],
        ["d", "e"],
    ]


def test_a_slice_of_a_round_is_ranked_as_if_it_stood_alone() -> None:
    # Chunks are slices; Arrow keeps the whole table's buffers behind them.
    table = candidates_of({f"q{i}": [f"d{i}{j}" for j in range(3)] for i in range(6)})
    out = ranked(table.slice(2, 2), [1, 2, 3, 6, 5, 4])
    assert out["query_id"].to_pylist() == ["q2", "q3"]
    assert [[item["doc_id"] for item in row] for row in out["candidates"].to_pylist()] == [
        ["d22", "d21", "d20"],
        ["d30", "d31", "d32"],
    ]


@given(st.lists(st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1.0, 3.5]), max_size=5), max_size=5))
def test_order_is_that_of_a_stable_sort(logits: list[list[float]]) -> None:
    table = candidates_of({f"q{i}": [f"d{j}" for j in range(len(row))] for i, row in enumerate(logits)})
    out = ranked(table, [value for row in logits for value in row])
    for values, row in zip(logits, out["candidates"].to_pylist(), strict=True):
        expected = sorted(range(len(values)), key=lambda j: -values[j])
        assert [item["doc_id"] for item in row] == [f"d{j}" for j in expected]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_refused_with_its_chunk(bad: float) -> None:
    # NaN sorts anywhere: a list with one would be committed for ever, in a random order.
    with pytest.raises(RankedListsError, match="chunk 5 has a logit that is not finite"):
        ranked(candidates_of({"q": ["a", "b"]}), [1.0, bad])


def test_a_wrong_number_of_logits_is_refused() -> None:
    with pytest.raises(RankedListsError, match="2 candidates but 3 logits"):
        ranked(candidates_of({"q": ["a", "b"]}), [1.0, 2.0, 3.0])
