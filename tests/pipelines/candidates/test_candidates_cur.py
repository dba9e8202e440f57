"""ANNCUR against the official code, where it is exact, and what it must refuse.

Why: a pseudo-inverse that blows up still returns a ranking, only a random one.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.candidates.cur import build_cur_index, stable_inverse
from pipelines.candidates.dense import top_k_inner_product
from pipelines.errors import PipelineError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "anncur_cur.json").read_text(encoding="utf-8"))["cases"]
ROWS = [case for case in GOLDEN if case["params"]["approx_preference"] == "rows"]
COLUMNS = [case for case in GOLDEN if case["params"]["approx_preference"] == "cols"]


def close(actual, expected):
    wanted = np.asarray(expected)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12 + 1e-9 * np.abs(wanted).max())


def name(case):
    return case["name"]


def matrix_and_anchors(case):
    return (np.asarray(case["inputs"][key]) for key in ("A", "row_idxs", "col_idxs"))


def low_rank(rank=3, queries=20, documents=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(queries, rank)) @ rng.normal(size=(rank, documents))


def test_no_golden_cur_case_is_forgotten():
    assert (len(ROWS), len(COLUMNS)) == (2, 2)
    known = {"loss", "U", "approx", "fro_error", "test_topk_vals", "test_topk_idx"}
    assert set().union(*(case["expected"] for case in GOLDEN)) == known


@pytest.mark.parametrize("case", GOLDEN, ids=name)
def test_the_inverse_and_the_error_of_the_whole_approximation(case):
    """An exactly low-rank block has singular values of rounding noise, so its inverse depends on the cut-off."""
    scores, queries, documents = matrix_and_anchors(case)
    inverse = stable_inverse(scores[np.ix_(queries, documents)])
    if case["params"]["noise"]:
        close(inverse, case["expected"]["U"])
    error = np.linalg.norm(scores - scores[:, documents] @ (inverse @ scores[queries]))
    if case["params"]["noise"]:
        assert error == pytest.approx(case["expected"]["fro_error"], rel=1e-9)
    else:
        assert max(error, case["expected"]["fro_error"]) < 1e-10


@pytest.mark.parametrize("case", ROWS, ids=name)
def test_rows_of_new_queries(case):
    scores, queries, documents = matrix_and_anchors(case)
    index = build_cur_index(scores[queries], documents)
    close(index.approximate(scores[:, documents]), case["expected"]["approx"])

    new = case["inputs"]["test_anchor_scores"]
    approximate = index.approximate(new)
    best = np.argsort(-approximate, axis=1)[:, :3]
    assert best.tolist() == case["expected"]["test_topk_idx"]
    close(np.take_along_axis(approximate, best, axis=1), case["expected"]["test_topk_vals"])

    embeddings = (index.query_embeddings(new), index.document_embeddings)
    found, values = top_k_inner_product(*(e.astype(np.float32) for e in embeddings), 3)
    assert found.tolist() == case["expected"]["test_topk_idx"]
    np.testing.assert_allclose(values, case["expected"]["test_topk_vals"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", COLUMNS, ids=name)
def test_columns_of_new_documents_are_rows_of_the_transposed_matrix(case):
    scores, queries, documents = matrix_and_anchors(case)
    index = build_cur_index(scores[:, documents].T, queries)
    close(index.approximate(scores[queries].T).T, case["expected"]["approx"])


def test_a_matrix_of_the_rank_of_its_anchors_is_found_exactly():
    scores = low_rank()
    index = build_cur_index(scores[:8], [2, 5, 11, 17])
    assert index.document_embeddings.shape == (30, 4)
    np.testing.assert_allclose(index.approximate(scores[:, [2, 5, 11, 17]]), scores, atol=1e-9)


@pytest.mark.parametrize("damping", [{"rcond": 0.05}, {"ridge": 1.0}])
def test_cutting_or_damping_small_singular_values_tames_noise(damping):
    """The square block of noisy scores is the case that the paper's anchors must avoid; both options repair it."""
    clean = low_rank(queries=60, documents=80)
    scores = clean + np.random.default_rng(1).normal(size=clean.shape, scale=0.05)
    anchors = np.arange(12)

    def error(**options):
        index = build_cur_index(scores[:12], anchors, **options)
        return np.linalg.norm(index.approximate(scores[12:, anchors]) - clean[12:]) / np.linalg.norm(clean[12:])

    assert error(**damping) < 0.2
    assert error() > 5 * error(**damping)


def test_the_ridge_solves_the_damped_least_squares_problem():
    block = np.random.default_rng(0).normal(size=(7, 4))
    wanted = np.linalg.solve(block.T @ block + 0.3 * np.eye(4), block.T)
    np.testing.assert_allclose(stable_inverse(block, ridge=0.3), wanted, atol=1e-12)
    np.testing.assert_allclose(stable_inverse(block, rcond=0.6), np.linalg.pinv(block, rcond=0.6), atol=1e-12)


@pytest.mark.parametrize(
    ("anchors", "complaint"),
    [
        (np.array([], dtype=np.int64), "too few anchors: 3 anchor queries for 0 anchor documents"),
        ([0, 1, 2, 3], "too few anchors: 3 anchor queries for 4 anchor documents"),
        ([1, 1], "distinct rows"),
        ([0, 30], r"distinct rows in \[0, 30\)"),
        ([-1], "distinct rows"),
        ([0.5], "must be a list of rows, got float64"),
    ],
)
def test_impossible_anchors_are_refused(anchors, complaint):
    with pytest.raises(PipelineError, match=complaint):
        build_cur_index(low_rank()[:3], anchors)


@pytest.mark.parametrize(
    ("block", "options", "complaint"),
    [
        ([[0.0, 0.0], [0.0, 0.0]], {}, "only zeros"),
        ([[np.nan, 0.0], [1.0, np.inf]], {}, "2 NaN or infinite score.s. of 4"),
        ([1.0, 2.0], {}, "must be a matrix"),
        ([[1.0]], {"rcond": 1.0}, r"rcond must be in \[0, 1\).*rcond=1.0"),
        ([[1.0]], {"ridge": -1.0}, "ridge=-1.0"),
    ],
)
def test_impossible_blocks_and_parameters_are_refused(block, options, complaint):
    with pytest.raises(PipelineError, match=complaint):
        stable_inverse(block, **options)


def test_a_query_must_bring_a_score_of_every_anchor():
    index = build_cur_index(low_rank()[:5], [0, 1, 2])
    with pytest.raises(PipelineError, match="each of its 3 anchor documents, got 2"):
        index.approximate([[1.0, 2.0]])
    with pytest.raises(PipelineError, match="anchor_scores: 1 NaN"):
        index.query_embeddings([[1.0, 2.0, np.nan]])
