"""Quantised search: the numbers of a model card are those of the codes that a user gets from sentence-transformers.

Held against FAISS, whose indexes users will search, and against plain arithmetic on the codes.
"""

import numpy as np
import pytest

from pipelines.candidates.dense import top_k_inner_product
from pipelines.errors import PipelineError
from pipelines.evaluation import precision
from pipelines.evaluation.metrics import evaluate, means
from pipelines.evaluation.precision import RESCORE_MULTIPLIER, PrecisionResult, int8_ranges, measure_precisions

QUERIES, DOCUMENTS, DIMENSION, DEPTH = 20, 300, 40, 10
QUERY_IDS = [f"q{row}" for row in range(QUERIES)]
DOC_IDS = [f"d{row:03}" for row in range(DOCUMENTS)]


def unit(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # One long dimension, as real embeddings have: steps of int8 differ, so codes alone do not rank.
    vectors = rng.normal(size=(rows, DIMENSION)) * np.where(np.arange(DIMENSION) == 3, 8.0, 1.0)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def embedded() -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, int]]]:
    documents = unit(DOCUMENTS, 1)
    noisy = documents[:QUERIES] + 0.5 * unit(QUERIES, 2)
    queries = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    close = np.argsort(-(queries @ documents.T), axis=1)[:, :5]
    qrels = {query: {DOC_IDS[doc]: 1 for doc in close[row]} for row, query in enumerate(QUERY_IDS)}
    return queries, documents, qrels


def run_of(rows: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        query: {DOC_IDS[doc]: float(score) for doc, score in zip(rows[i], scores[i], strict=True)}
        for i, query in enumerate(QUERY_IDS)
    }


def float32_of(queries: np.ndarray, documents: np.ndarray, qrels: dict[str, dict[str, int]]) -> dict:
    return evaluate(qrels, run_of(*top_k_inner_product(queries, documents, DEPTH)))


def measured(
    queries: np.ndarray, documents: np.ndarray, qrels: dict[str, dict[str, int]]
) -> dict[str, PrecisionResult]:
    found = measure_precisions(
        queries,
        documents,
        query_ids=QUERY_IDS,
        doc_ids=DOC_IDS,
        qrels=qrels,
        float32=float32_of(queries, documents, qrels),
        precisions=("int8", "binary"),
        search=top_k_inner_product,
        depth=DEPTH,
    )
    return {result.search: result for result in found}


def test_int8_is_float_queries_against_the_users_own_codes(embedded: tuple) -> None:
    from sentence_transformers.util import quantize_embeddings

    queries, documents, qrels = embedded
    ranges = int8_ranges(documents)
    by_library = quantize_embeddings(documents, precision="int8", calibration_embeddings=documents)
    np.testing.assert_array_equal(quantize_embeddings(documents, precision="int8", ranges=ranges), by_library)
    stands_for = (by_library.astype(np.float64) + 128) * (ranges[1] - ranges[0]) / 255 + ranges[0]
    assert np.abs(stands_for - documents).max() < 0.02, "the codes must stand for the vectors"
    scores = queries @ stands_for.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    expected = means(evaluate(qrels, run_of(rows, np.take_along_axis(scores, rows, axis=1))))
    assert measured(*embedded)["int8"].measures == pytest.approx(expected, abs=1e-12)


def test_binary_is_the_hamming_search_of_faiss_and_its_rescoring_the_librarys(embedded: tuple) -> None:
    import faiss
    from sentence_transformers.util import quantize_embeddings

    queries, documents, qrels = embedded
    index = faiss.IndexBinaryFlat(DIMENSION)
    index.add(quantize_embeddings(documents, precision="ubinary"))
    distances, _ = index.search(quantize_embeddings(queries, precision="ubinary"), DOCUMENTS)
    signs = np.where(documents > 0, 1.0, -1.0)
    hamming = (np.where(queries > 0, 1, -1)[:, None] != signs[None]).sum(axis=2)
    np.testing.assert_array_equal(np.sort(hamming, axis=1), distances)  # how FAISS orders ties is its own affair
    wide = np.argsort(hamming, axis=1, kind="stable")[:, : RESCORE_MULTIPLIER * DEPTH]
    found = measured(*embedded)
    plain = run_of(wide[:, :DEPTH], -np.take_along_axis(hamming, wide, axis=1)[:, :DEPTH])
    assert found["binary"].measures == pytest.approx(means(evaluate(qrels, plain)), abs=1e-12)
    scores = np.take_along_axis(queries @ signs.T, wide, axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    rescored = run_of(np.take_along_axis(wide, best, axis=1), np.take_along_axis(scores, best, axis=1))
    assert found["binary_rescored"].measures == pytest.approx(means(evaluate(qrels, rescored)), abs=1e-12)
    assert found["binary"].measures["nDCG@10"] < found["binary_rescored"].measures["nDCG@10"], "else why rescore"


def test_the_loss_is_float32_less_the_rest_and_the_sizes_are_those_of_the_codes(embedded: tuple) -> None:
    float32, found = means(float32_of(*embedded)), measured(*embedded)
    assert {name: result.bytes_per_embedding for name, result in found.items()} == {
        "int8": 40,
        "binary": 5,
        "binary_rescored": 5,
    }
    for result in found.values():
        assert result.loss == pytest.approx({name: float32[name] - result.measures[name] for name in float32})
    assert found["binary"].loss["nDCG@10"] > found["int8"].loss["nDCG@10"] >= 0


def test_blocks_of_documents_change_nothing(embedded: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    # Binary scores are full of ties; which of them make it into a run must not depend on the memory at hand.
    whole = measured(*embedded)
    monkeypatch.setattr(precision, "_BLOCK", 7)
    np.testing.assert_array_equal(int8_ranges(embedded[1]), [embedded[1].min(axis=0), embedded[1].max(axis=0)])
    assert measured(*embedded) == whole


def test_a_dimension_without_any_range_is_no_division_by_zero(embedded: tuple) -> None:
    queries, documents, qrels = (part.copy() for part in embedded)
    documents[:, 5] = 0.25
    with np.errstate(all="raise"):
        assert measured(queries, documents, qrels)["int8"].measures["nDCG@10"] > 0.5


def test_ids_that_do_not_fit_are_refused(embedded: tuple) -> None:
    queries, documents, qrels = embedded
    with pytest.raises(PipelineError, match=r"300 embeddings of documents have 299 ids"):
        measure_precisions(
            queries,
            documents,
            query_ids=QUERY_IDS,
            doc_ids=DOC_IDS[1:],
            qrels=qrels,
            float32=float32_of(queries, documents, qrels),
            precisions=("int8",),
            search=top_k_inner_product,
            depth=DEPTH,
        )
