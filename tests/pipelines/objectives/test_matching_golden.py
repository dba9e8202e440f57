"""Objectives that match the teacher's values, against official code or an independent reference, value and gradient.

Why: each of them exists in several versions (with and without an epsilon, a sum or a mean, one or the other direction
of a divergence) that all train something. Only somebody else's numbers show which one this is.
"""

import math

import numpy as np
import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, flags, leaf
from torch.nn import functional

from pipelines.objectives.ar2 import ar2_code_compat_loss, ar2_loss
from pipelines.objectives.binary_kl import binary_kl_loss, binary_kl_norm_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.list_net import list_net_loss
from pipelines.objectives.m3_kd import m3_kd_loss
from pipelines.objectives.mw import mw_loss
from pipelines.objectives.ranker_loss import ranker_loss
from pipelines.objectives.rocketqa_v2 import rocketqa_v2_loss
from pipelines.objectives.simans import simans_weights
from pipelines.objectives.z_loss import z_loss

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

BY_KIND = {
    kind: [c for c in cases("flagembedding_kd") if c["params"]["kd_loss_type"] == kind]
    for kind in ("kl_div", "m3_kd_loss")
}
ALLRANK = [c for c in cases("allrank_ltr") if c["params"]["loss"].startswith("listNet")]
DISTILL_CLIP = [c for c in cases("open_clip") if c["params"]["loss"] == "DistillClipLoss"]
DHKD = {"BinaryKL": binary_kl_loss, "BinaryKLNorm": binary_kl_norm_loss, "DistillKL": list_kl_loss}


def scores(case, name, dtype):
    return torch.tensor(case["inputs"][name], dtype=dtype)


def mask_of(case):
    return flags(case["inputs"]["mask"]) if "mask" in case["inputs"] else None


def first_column(rows):
    """Golden lists have their positive in column 0."""
    return torch.zeros(rows, dtype=torch.int64)


def test_no_golden_case_is_forgotten():
    counts = {
        "st_listnet": 2,
        "flagembedding_kd": 2,
        "rocketqav2_dynamic_listwise": 2,
        "dhkd_binary_kl": 7,
        "ar2_paper_derived": 3,
        "ar2_ranker_official": 2,
        "ar2_retriever_official": 4,
        "z_loss": 2,
        "mw_loss": 3,
        "simans_weights": 3,
    }
    assert {name: len(cases(name)) for name in counts} == counts
    assert [len(found) for found in BY_KIND.values()] == [1, 1]
    assert len(ALLRANK) == 2
    assert len(DISTILL_CLIP) == 1
    assert [sum(c["params"]["loss"] == kind for c in cases("dhkd_binary_kl")) for kind in DHKD] == [3, 2, 2]


@every_dtype
@pytest.mark.parametrize("case", [*cases("st_listnet"), *BY_KIND["kl_div"]], ids=case_name)
def test_list_net_is_sentence_transformers_list_net_and_flagembeddings_kl_div(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    loss = list_net_loss(student, scores(case, "teacher_scores", dtype), mask_of(case), temperature=1.0)
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", ALLRANK, ids=case_name)
def test_list_net_with_epsilon_is_allranks(case, dtype):
    """allRank adds 1e-10 to probabilities inside the logarithm; padding there is the label -1."""
    student = leaf(case["inputs"]["student_scores"], dtype)
    loss = list_net_loss(student, scores(case, "labels", dtype), mask_of(case), temperature=1.0, epsilon=1e-10)
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", DISTILL_CLIP, ids=case_name)
def test_list_net_of_both_directions_is_open_clips_distillation(case, dtype):
    image, text = (leaf(case["inputs"][name], dtype) for name in ("image", "text"))
    logits = case["inputs"]["logit_scale"] * image @ text.T
    teacher = case["inputs"]["teacher_logit_scale"] * (
        scores(case, "teacher_image", dtype) @ scores(case, "teacher_text", dtype).T
    )
    loss = (list_net_loss(logits, teacher, temperature=1.0) + list_net_loss(logits.T, teacher.T, temperature=1.0)) / 2
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(image.grad, case["expected"]["grad_image"], dtype)
    assert_golden(text.grad, case["expected"]["grad_text"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("dhkd_binary_kl"), ids=case_name)
def test_binary_kl_and_list_kl_are_the_losses_of_dual_head_distillation(case, dtype):
    """One case has a saturated teacher: without the code's clamp of probabilities its loss would be another."""
    student = leaf(case["inputs"]["student_scores"], dtype)
    kind, temperature = case["params"]["loss"], case["params"]["temperature"]
    clamp = {} if kind == "DistillKL" else {"probability_clamp": case["params"]["eps"]}
    loss = DHKD[kind](
        student,
        scores(case, "teacher_scores", dtype),
        temperature=temperature,
        teacher_temperature=temperature,
        scale_by_temperature_squared=True,
        **clamp,
    )
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", BY_KIND["m3_kd_loss"], ids=case_name)
def test_m3_kd_is_flagembeddings(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    teacher = scores(case, "teacher_scores", dtype)
    group = case["params"]["group_size"]
    columns = torch.arange(len(teacher) * group).view(len(teacher), group)
    loss = m3_kd_loss(student, teacher, columns=columns, temperature=1.0)
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("rocketqav2_dynamic_listwise"), ids=case_name)
def test_rocketqa_v2_trains_both_sides_in_either_form(case, dtype):
    student, teacher = (leaf(case["inputs"][name], dtype) for name in ("student_scores", "teacher_scores"))
    form = case["params"]["form"]

    def loss_with(positive):
        return rocketqa_v2_loss(student, teacher, positive=positive, temperature=1.0, form=form)

    loss = loss_with(first_column(len(student)))
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)
    assert_golden(teacher.grad, case["expected"]["grad_teacher_scores"], dtype)
    divergence = loss_with(torch.full((len(student),), -1))  # without positives there is no cross-entropy
    assert_golden(divergence, case["expected"]["kl" if form == "paper" else "kl_mean_over_elements"], dtype)
    assert_golden(loss - divergence, case["expected"]["ce"], dtype)
    if form == "code":
        assert_golden(divergence * student.shape[1], case["expected"]["kl_batchmean"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("ar2_paper_derived"), ids=case_name)
def test_ar2_and_list_net_add_up_to_the_papers_retriever_loss(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    teacher = scores(case, "teacher_scores", dtype)
    temperature = 1 / case["params"]["tau"]
    loss = case["params"]["w_adv"] * ar2_loss(
        student, teacher, positive=first_column(len(student)), temperature=temperature, teacher_temperature=temperature
    ) + case["params"]["w_reg"] * list_net_loss(
        student, teacher, temperature=temperature, teacher_temperature=temperature
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("ar2_paper_derived"), ids=case_name)
def test_ar2_query_by_query_and_negative_by_negative(case, dtype):
    """One row gives J of its query; one row with one negative gives that negative's reward."""
    student, teacher = scores(case, "student_scores", dtype), scores(case, "teacher_scores", dtype)
    temperature = 1 / case["params"]["tau"]
    both = {"temperature": temperature, "teacher_temperature": temperature}
    rows = [(student[i : i + 1], teacher[i : i + 1]) for i in range(len(student))]
    expected = torch.stack([ar2_loss(s, t, positive=first_column(1), **both) for s, t in rows])
    assert_golden(expected, case["expected"]["J_per_query"], dtype)
    imitation = torch.stack([list_net_loss(s, t, **both) for s, t in rows])
    assert_golden(imitation, case["expected"]["reg_per_query"], dtype)
    reward = torch.stack(
        [
            torch.stack([ar2_loss(s[:, [0, m]], t[:, [0, m]], positive=first_column(1), **both) for m in range(1, 6)])
            for s, t in rows
        ]
    )
    assert_golden(reward, case["expected"]["reward"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("ar2_retriever_official"), ids=case_name)
def test_ar2_code_compat_is_the_released_retriever_loss(case, dtype):
    queries, documents = leaf(case["inputs"]["q"], dtype), leaf(case["inputs"]["d"], dtype)
    student = torch.einsum("qe,qke->qk", queries, documents.view(len(queries), -1, queries.shape[1]))
    student.retain_grad()
    teacher = scores(case, "teacher_scores", dtype)
    scaled = math.sqrt(queries.shape[1]) if case["params"]["scale_by_sqrt_dim"] else 1.0

    def loss_with(adversarial_weight):
        return ar2_code_compat_loss(
            student,
            teacher,
            positive=first_column(len(queries)),
            temperature=scaled,
            teacher_temperature=case["params"]["temperature_ranker"],
            adversarial_weight=adversarial_weight,
            epsilon=case["params"]["eps"],
        )

    loss = loss_with(case["params"]["adv_lambda"])
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(student, case["inputs"]["student_scores"], dtype)
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)
    assert_golden(queries.grad, case["expected"]["grad_q"], dtype)
    assert_golden(documents.grad, case["expected"]["grad_d"], dtype)
    assert_golden(loss_with(1.0), case["expected"]["adv_loss"], dtype)
    assert_golden(loss_with(0.0), case["expected"]["normal_loss"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("ar2_retriever_official"), ids=case_name)
def test_what_ar2s_golden_loss_is_made_of_makes_it_up(case, dtype):
    """Its rewards and distributions, put together by hand, are its loss: the file is read as it is meant."""
    reward, retriever, ranker = (
        torch.tensor(case["expected"][name], dtype=dtype) for name in ("reward", "retriever_probs", "ranker_probs")
    )
    log_retriever = (retriever + case["params"]["eps"]).log()
    assert_golden((reward * log_retriever).sum(), case["expected"]["adv_loss"], dtype)
    assert_golden(-(ranker * log_retriever).sum() / len(ranker), case["expected"]["normal_loss"], dtype)
    teacher = scores(case, "teacher_scores", dtype)
    exact = functional.logsigmoid(teacher[:, :1] - teacher)
    torch.testing.assert_close(exact, reward, rtol=0, atol=case["params"]["eps"] / float(exact.exp().min()) + 1e-5)


@every_dtype
@pytest.mark.parametrize("case", cases("ar2_ranker_official"), ids=case_name)
def test_the_ranker_trains_on_ar2s_ranker_loss(case, dtype):
    ranker = leaf(case["inputs"]["teacher_scores"], dtype)
    loss = ranker_loss(ranker, first_column(len(ranker)))
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(ranker.grad, case["expected"]["grad_teacher_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("z_loss"), ids=case_name)
def test_z_loss(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    a, b = case["params"]["a"], case["params"]["b"]
    target = torch.tensor(case["inputs"]["target"])
    loss = z_loss(student, positive=target, a=a, b=b)
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)
    for column in range(student.shape[1]):  # a single row's loss gives back the z-score it was made from
        for row in range(len(student)):
            value = z_loss(student.detach()[row : row + 1], positive=torch.tensor([column]), a=a, b=b)
            z = b - (a * value).expm1().log() / a
            torch.testing.assert_close(
                float(z), case["expected"]["z"][row][column], rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-3
            )


@every_dtype
@pytest.mark.parametrize("case", cases("mw_loss"), ids=case_name)
def test_mw(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    loss = mw_loss(
        student,
        torch.tensor(case["inputs"]["pos_col"]),
        relevant=~flags(case["inputs"]["neg_mask"]),
        temperature=case["params"]["tau"],
        reduction=case["params"]["reduction"],
    )
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@pytest.mark.parametrize("case", cases("mw_loss"), ids=case_name)
def test_mw_at_a_vanishing_temperature_counts_what_auc_counts(case):
    """The gradient then is 1 for each pair in the wrong order and 0 for the others: the share of those is 1 - AUC."""
    student = torch.tensor(case["inputs"]["student_scores"], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor(case["inputs"]["pos_col"])
    tau = 1e-6
    loss = mw_loss(
        student,
        positive,
        relevant=~flags(case["inputs"]["neg_mask"]),
        temperature=tau,
        reduction="mean_over_pairs",
    )
    loss.backward()
    wrong_pairs = -float(student.grad.gather(1, positive.unsqueeze(1)).sum()) * tau
    assert wrong_pairs == pytest.approx(1 - case["expected"]["auc"], abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", cases("simans_weights"), ids=case_name)
def test_simans_probabilities_are_the_codes(case, dtype):
    negatives = np.array(case["inputs"]["neg_scores"], dtype=dtype)
    found = simans_weights(negatives, case["inputs"]["pos_score"], **case["params"], form="code")
    assert found.dtype == np.float64
    relative, absolute = (1e-9, 1e-12) if dtype == np.float64 else (1e-4, 1e-5)
    probabilities, weights = np.array(case["expected"]["probs"]), np.array(case["expected"]["weights"])
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=absolute + relative * probabilities.max())
    np.testing.assert_allclose(found * weights.sum(), weights, rtol=0, atol=absolute + relative * weights.max())
    if dtype == np.float64:  # down to the smallest: logarithms lose nothing where the code's weights still exist
        np.testing.assert_allclose(found, probabilities, rtol=1e-9)
