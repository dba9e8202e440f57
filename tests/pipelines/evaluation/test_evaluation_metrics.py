"""Measures per query, ties, missing queries, and golden values.

Why: every claim of a job rests on these numbers. A tie broken by luck, or a query dropped instead of counted as
0, moves a mean by more than most methods do.
"""

import json
import math
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import MEASURES, evaluate, means

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "metrics.json").read_text(encoding="utf-8"))["cases"]


def test_golden_ndcg_and_reciprocal_rank():
    """The golden nDCG has gains 2^y - 1, which are the linear gains of those relevances; ids stand in input order."""
    run = {"q": {f"d{i}": score for i, score in enumerate(GOLDEN["inputs"]["pred"])}}
    gains = {"q": {f"d{i}": 2**y - 1 for i, y in enumerate(GOLDEN["inputs"]["graded"])}}
    binary = {"q": {f"d{i}": y for i, y in enumerate(GOLDEN["inputs"]["binary"])}}
    for cutoff in GOLDEN["params"]["ndcg_cutoffs"]:
        value = evaluate(gains, run, [f"nDCG@{cutoff}"])[f"nDCG@{cutoff}"]["q"]
        assert value == pytest.approx(GOLDEN["expected"][f"ndcg_at_{cutoff}"], rel=1e-9)
    assert evaluate(binary, run, ["RR@10"])["RR@10"]["q"] == pytest.approx(GOLDEN["expected"]["mrr"], rel=1e-9)


def test_ndcg_is_trec_evals_linear_gain():
    """The default must be the measure that published BEIR numbers use."""
    found = evaluate({"q": {"a": 3, "b": 1}}, {"q": {"x": 3.0, "b": 2.0, "a": 1.0}})
    dcg = 1 / math.log2(3) + 3 / math.log2(4)
    assert found["nDCG@10"]["q"] == pytest.approx(dcg / (3 + 1 / math.log2(3)))
    assert found["RR@10"]["q"] == 0.5
    assert found["R@100"]["q"] == 1.0


def test_cutoffs_are_respected():
    run = {"q": {f"x{i:03}": 1000.0 - i for i in range(101)} | {"late": -1.0, "tenth": 990.5}}
    found = evaluate({"q": {"late": 1, "tenth": 1}}, run)
    assert found["RR@10"]["q"] == 0.0  # ten documents are above it
    assert found["R@100"]["q"] == 0.5


@pytest.mark.parametrize("order", [["b", "a", "c"], ["c", "b", "a"], ["a", "b", "c"]])
def test_ties_are_ranked_by_document_id_whatever_the_order_of_the_run(order):
    found = evaluate({"q": {"b": 1}}, {"q": dict.fromkeys(order, 0.5)})
    assert found["RR@10"]["q"] == 0.5
    assert found["nDCG@10"]["q"] == pytest.approx(1 / math.log2(3))


def test_a_query_missing_from_the_run_counts_zero():
    """Otherwise a system that answers only easy queries would win."""
    found = evaluate(
        {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}, {"q1": {"a": 1.0}, "q3": {}, "other": {"a": 1.0}}
    )
    assert found == {measure: {"q1": 1.0, "q2": 0.0, "q3": 0.0} for measure in MEASURES}
    assert means(found) == dict.fromkeys(MEASURES, pytest.approx(1 / 3))


def test_queries_without_a_relevant_document_are_left_out():
    found = evaluate({"q1": {"a": 1}, "q2": {"a": 0}, "q3": {}}, {"q1": {"a": 1.0}, "q2": {"a": 1.0}})
    assert list(found["nDCG@10"]) == ["q1"]


def test_nothing_measurable_and_nan_scores_are_refused():
    with pytest.raises(PipelineError, match="none of the 1 judged queries"):
        evaluate({"q": {"a": 0}}, {})
    with pytest.raises(PipelineError, match="'q' as NaN"):
        evaluate({"q": {"a": 1}}, {"q": {"a": math.nan}})
