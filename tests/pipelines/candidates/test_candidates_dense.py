"""Dense search is exact whatever the chunks: the rows of a full sort, ties by row, and no NaN passes."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.candidates import best_columns, dense
from pipelines.candidates.dense import top_k_inner_product
from pipelines.errors import ModelError


def full_sort(queries: np.ndarray, documents: np.ndarray, top_k: int) -> np.ndarray:
    scores = queries @ documents.T
    row = np.arange(scores.shape[1])
    return np.stack([np.lexsort((row, -line))[:top_k] for line in scores])


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 10_000),
    num_queries=st.integers(1, 7),
    num_documents=st.integers(1, 40),
    top_k=st.integers(1, 45),
    query_chunk=st.integers(1, 8),
    document_chunk=st.integers(1, 45),
    tile=st.sampled_from([1, 2, 5, 64]),
    largest=st.sampled_from([2, 1000]),
)
def test_any_chunking_equals_one_full_stable_sort(
    seed: int,
    num_queries: int,
    num_documents: int,
    top_k: int,
    query_chunk: int,
    document_chunk: int,
    tile: int,
    largest: int,
) -> None:
    # Integers make products exact, and small ones ties frequent: the hard case for a chunked top-k.
    draw = np.random.default_rng(seed)
    queries = draw.integers(-largest, largest + 1, (num_queries, 3)).astype(np.float32)
    documents = draw.integers(-largest, largest + 1, (num_documents, 3)).astype(np.float32)
    with mock.patch.object(dense, "TILE", tile), mock.patch.multiple(best_columns, TILE=tile, _TILES_PER_RESULT=1):
        rows, scores = top_k_inner_product(
            queries, documents, top_k, query_chunk=query_chunk, document_chunk=document_chunk
        )
    expected = full_sort(queries, documents, top_k)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ documents.T, expected, axis=1))
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


def test_real_valued_scores_are_the_inner_products() -> None:
    draw = np.random.default_rng(0)
    queries, documents = (
        draw.standard_normal((5, 64), np.float32),
        draw.standard_normal((300, 64), np.float32),
    )
    rows, scores = top_k_inner_product(queries, documents, 10, query_chunk=2, document_chunk=64)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, rows, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows, full_sort(queries, documents, 10))


def test_read_only_embeddings_are_fine_and_no_query_gives_no_row() -> None:
    documents = np.eye(3, dtype=np.float32)
    documents.setflags(write=False)
    rows, _ = top_k_inner_product(documents, documents, 1)
    assert rows.tolist() == [[0], [1], [2]]
    assert top_k_inner_product(documents[:0], documents, 2)[0].shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_student_is_an_error_with_the_row(bad: float) -> None:
    good, broken = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    broken[2, 1] = bad
    with pytest.raises(ModelError, match="1 of 4 document embeddings hold NaN or infinity, first in row 2"):
        top_k_inner_product(good, broken, 2)
    with pytest.raises(ModelError, match="query embeddings"):
        top_k_inner_product(broken, good, 2)


def test_wrong_shapes_and_sizes_are_refused() -> None:
    two, three = np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match="dimensions differ: queries 2, documents 3"):
        top_k_inner_product(two, three, 1)
    with pytest.raises(ValueError, match="must be float32"):
        top_k_inner_product(two.astype(np.float64), two, 1)
    with pytest.raises(ValueError, match="no document to search"):
        top_k_inner_product(two, two[:0], 1)
    with pytest.raises(ValueError, match="top_k=0"):
        top_k_inner_product(two, two, 0)


def test_documents_in_the_order_of_their_scores_are_the_slow_case_and_no_other() -> None:
    # Every block beats all that is kept, so no bound rules anything out.
    documents = np.linspace(0.1, 1.0, 3000, dtype=np.float32).reshape(-1, 1)
    rows, _ = top_k_inner_product(np.ones((2, 1), np.float32), documents, 4, document_chunk=1024)
    assert rows.tolist() == [[2999, 2998, 2997, 2996]] * 2
    rows, _ = top_k_inner_product(np.zeros((2, 1), np.float32), documents, 4, document_chunk=1024)
    assert rows.tolist() == [[0, 1, 2, 3]] * 2
