"""Ranking losses against allRank and sentence-transformers: value and gradient, float64 and float32.

Why: two public codes disagree with each other in reduction, logarithm and the meaning of top k, so that each of our
options must be shown to be the form that it is named after.
"""

import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, flags, leaf

from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.approx_ndcg import approx_ndcg_loss
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_mle import list_mle_loss, p_list_mle_loss
from pipelines.objectives.ranknet import ranknet_loss

ALLRANK = {
    "rankNet": lambda s, y, m: ranknet_loss(s, y, m, temperature=1),
    "rankNet_padded": lambda s, y, m: ranknet_loss(s, y, m, temperature=1),
    "rankNet_weighted_diff": lambda s, y, m: ranknet_loss(s, y, m, temperature=1, weight_by_difference=True),
    "listMLE_distinct": lambda s, y, m: list_mle_loss(s, y, m, temperature=1),
    "lambdaRank": lambda s, y, m: lambda_loss(
        s, y, m, temperature=1, weighting="lambda_rank", grades="as_given", reduction="sum"
    ),
    "ndcgLoss2PP_mean_k3": lambda s, y, m: lambda_loss(
        s, y, m, temperature=1, grades="as_given", reduction="mean_over_pairs", top_k=3, top_k_pairs="both"
    ),
    "lambdaLoss_none_natural": lambda s, y, m: lambda_loss(
        s, y, m, temperature=1, weighting="none", grades="as_given", reduction="sum", log_base="natural"
    ),
    # The literature's value is minus nDCG, ours one minus nDCG.
    "approxNDCG": lambda s, y, m: approx_ndcg_loss(s, y, m, temperature=1, grades="as_given") - 1,
}
ALLRANK_CASES = [case for case in cases("allrank_ltr") if case["params"]["loss"] in ALLRANK]
LAMBDA_CASES = cases("st_lambda_ranknet")
WEIGHTING = {
    "LambdaLoss_ndcg2pp": "ndcg_loss2pp",
    "LambdaRank": "lambda_rank",
    "NDCGLoss1": "ndcg_loss1",
    "NDCGLoss2": "ndcg_loss2",
}
LIST_MLE_CASES = cases("st_listmle")
ADR_CASES = cases("st_adr_mse")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tensors(case, dtype):
    """Student, teacher or labels, mask."""
    inputs = case["inputs"]
    labels = inputs["labels"] if "labels" in inputs else inputs["teacher_scores"]
    return (
        leaf(inputs["student_scores"], dtype),
        torch.tensor(labels, dtype=dtype),
        flags(inputs["mask"]) if "mask" in inputs else None,
    )


def test_no_golden_case_is_forgotten():
    assert sorted(case["params"]["loss"] for case in ALLRANK_CASES) == sorted(ALLRANK)
    others = {case["params"]["loss"] for case in cases("allrank_ltr")} - set(ALLRANK)
    assert others == {"listNet", "listNet_padded"}, "these belong to list_net"
    assert (len(LAMBDA_CASES), len(LIST_MLE_CASES), len(ADR_CASES)) == (12, 4, 2)


@every_dtype
@pytest.mark.parametrize("case", ALLRANK_CASES, ids=case_name)
def test_allrank(case, dtype):
    """allRank's epsilon of 1e-10, inside ListMLE's logarithm and as a clamp elsewhere, is below the tolerance."""
    student, labels, mask = tensors(case, dtype)
    loss = ALLRANK[case["params"]["loss"]](student, labels, mask)
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", LAMBDA_CASES, ids=case_name)
def test_sentence_transformers_ranknet_and_lambda_loss(case, dtype):
    """That commit keeps pairs with both candidates in the top k; its clamps at 1e-10 do not bind on these inputs."""
    student, labels, mask = tensors(case, dtype)
    params = case["params"]
    shared = {
        "temperature": 1 / params["sigma"],
        "top_k": params["k"],
        "top_k_pairs": "both",
        "log_base": params["log"],
    }
    if params["loss"].startswith("RankNet"):
        loss = ranknet_loss(student, labels, mask, **shared)
    else:
        loss = lambda_loss(
            student,
            labels,
            mask,
            weighting=WEIGHTING[params["loss"]],
            mu=params["mu"],
            grades="as_given",
            reduction="mean_over_pairs",
            **shared,
        )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("suffix", ["_exact", ""], ids=["exact", "official"])
@pytest.mark.parametrize("case", LIST_MLE_CASES, ids=case_name)
def test_sentence_transformers_list_mle(case, suffix, dtype):
    """Our exact form, and the official one, whose 1e-10 inside the logarithm is below the tolerance on these inputs."""
    student, teacher, mask = tensors(case, dtype)
    if case["params"]["respect_input_order"]:
        teacher = torch.arange(teacher.shape[1], 0, -1, dtype=dtype).expand_as(teacher)
    if case["params"]["loss"] == "ListMLE":
        loss = list_mle_loss(student, teacher, mask, temperature=1)
    else:
        loss = p_list_mle_loss(student, teacher, mask, temperature=1, weight_ranks="from_zero")
    loss.backward()
    assert_golden(loss, case["expected"]["loss" + suffix], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores" + suffix], dtype)


@every_dtype
@pytest.mark.parametrize("case", ADR_CASES, ids=case_name)
def test_sentence_transformers_adr_mse(case, dtype):
    student, labels, mask = tensors(case, dtype)
    loss = adr_mse_loss(student, labels, mask, temperature=1 / case["params"]["alpha"])
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)
