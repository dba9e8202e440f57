"""AUC and rank correlations: golden values, ties, and lists on which they are undefined.

Why: scipy answers an undefined correlation with NaN and a warning, which a report would print.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation.agreement import kendall_tau_b, roc_auc, spearman

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "metrics.json").read_text(encoding="utf-8"))["cases"]


def test_golden_auc_and_rank_correlations():
    """With nDCG and RR in test_evaluation_metrics.py these are all entries of the file."""
    graded, binary, scores = (GOLDEN["inputs"][name] for name in ("graded", "binary", "pred"))
    assert roc_auc(binary, scores) == pytest.approx(GOLDEN["expected"]["roc_auc"], rel=1e-9)
    assert spearman(graded, scores) == pytest.approx(GOLDEN["expected"]["spearman"], rel=1e-9)
    assert kendall_tau_b(graded, scores) == pytest.approx(GOLDEN["expected"]["kendall_tau_b"], rel=1e-9)
    cutoffs = {f"ndcg_at_{k}" for k in GOLDEN["params"]["ndcg_cutoffs"]}
    assert GOLDEN["expected"].keys() == cutoffs | {"loss", "mrr", "roc_auc", "spearman", "kendall_tau_b"}


def test_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 30), rng.integers(0, 6, 30)
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    right = math.fsum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    assert roc_auc(labels, scores) == pytest.approx(right / len(pairs))


@pytest.mark.parametrize("measure", [spearman, kendall_tau_b])
def test_a_correlation_sees_the_order_alone(measure):
    scores = np.random.default_rng(0).normal(size=20)
    assert measure(scores, np.exp(scores)) == pytest.approx(1.0)
    assert measure(scores, -scores) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("measure", "left", "right", "complaint"),
    [
        (roc_auc, [1, 1], [0.1, 0.2], "both of them: 2 one.s., 0 zero.s. of 2"),
        (roc_auc, [0, 2], [0.1, 0.2], "labels 0 and 1"),
        (roc_auc, [0, 1, 1], [0.1, 0.2], "two lists of one length"),
        (roc_auc, [0, 1], [0.1, math.nan], "1 found"),
        (spearman, [1, 1, 1], [1, 2, 3], "the first side has 3 equal"),
        (kendall_tau_b, [1, 2, 3], [1, 1, 1], "the second side has 3 equal"),
        (kendall_tau_b, [1], [2], "1 equal item"),
    ],
)
def test_undefined_agreement_is_refused(measure, left, right, complaint):
    with pytest.raises(PipelineError, match=complaint):
        measure(left, right)
