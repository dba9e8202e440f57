"""BM25 is the Lucene formula, its order is total (ties by row), and odd inputs find nothing."""

import math

import numpy as np
import pytest

from pipelines.candidates.bm25 import BM25Index

PASSAGES = ["gout hurts feet", "fever and cough", "gout gout gout", "feet", "the of and", "gout hurts feet"]


def lucene(term_counts: list[dict[str, int]], query: list[str], k1: float, b: float) -> list[float]:
    """Lucene's BM25 by the book: idf = ln(1 + (N - n + .5) / (n + .5)), no (k1 + 1) in the numerator."""
    lengths = [sum(counts.values()) for counts in term_counts]
    average = sum(lengths) / len(lengths)
    scores = []
    for counts, length in zip(term_counts, lengths, strict=True):
        score = 0.0
        for term in query:
            n = sum(term in other for other in term_counts)
            tf = counts.get(term, 0)
            idf = math.log(1 + (len(term_counts) - n + 0.5) / (n + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * length / average))
        scores.append(score)
    return scores


def test_scores_equal_the_formula() -> None:
    documents = [{"gout": 1, "hurt": 1, "feet": 1}, {"fever": 1, "cough": 1}, {"gout": 3}, {"feet": 1}]
    index = BM25Index(PASSAGES[:4], k1=0.9, b=0.4)
    rows, scores = index.search(["gout hurts"], 4)
    expected = lucene(documents, ["gout", "hurt"], 0.9, 0.4)
    assert rows.tolist() == [[0, 2, -1, -1]]
    np.testing.assert_allclose(scores[0], [expected[0], expected[2], 0, 0], rtol=1e-6)


def test_equal_scores_go_to_the_lower_row_even_at_the_cut() -> None:
    index = BM25Index(["same words"] * 50 + ["other"])
    for top_k in (1, 7, 49, 51):
        rows, _ = index.search(["same"], top_k)
        assert rows[0, : min(top_k, 50)].tolist() == list(range(min(top_k, 50)))
        assert (rows[0, 50:] == -1).all()


def test_stemming_and_stop_words_are_english() -> None:
    rows, _ = BM25Index(PASSAGES).search(["hurting the foot", "the of and", "zzz", ""], 2)
    assert rows.tolist() == [[0, 5], [-1, -1], [-1, -1], [-1, -1]]


def test_shapes_and_types_hold_for_no_query_and_for_a_wide_k() -> None:
    index = BM25Index(PASSAGES)
    rows, scores = index.search([], 3)
    assert rows.shape == scores.shape == (0, 3)
    rows, scores = index.search(["gout"], 1000)
    assert rows.shape == (1, len(PASSAGES))
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


def test_a_corpus_of_stop_words_finds_nothing() -> None:
    rows, _ = BM25Index(["the of", "and"]).search(["the", "gout"], 2)
    assert (rows == -1).all()


def test_senseless_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one passage"):
        BM25Index([])
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        BM25Index(PASSAGES).search(["gout"], 0)
