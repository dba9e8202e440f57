"""Parity with official or independently derived numbers: value and gradient, float64 and float32.

Why: a loss with a wrong sign, temperature or divisor still goes down and still trains something. Only numbers
that somebody else computed show that it is the loss it claims to be.
"""

import math

import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, flags, leaf

from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.margin_mse import margin_mse_loss

CPRD_CASES = cases("cprd")
LISTS = [case for case in CPRD_CASES if "student_scores" in case["inputs"]]
END_TO_END = [case for case in CPRD_CASES if "sim" in case["inputs"]]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def test_no_golden_cprd_case_is_forgotten():
    assert len(LISTS) == 8
    assert len(END_TO_END) == 1


@every_dtype
@pytest.mark.parametrize("case", LISTS, ids=case_name)
def test_cprd(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    loss = cprd_loss(
        student,
        torch.tensor(case["inputs"]["teacher_scores"], dtype=dtype),
        valid=flags(case["inputs"]["valid"]),
        temperature=case["params"]["tau"],
        reduction=case["params"]["reduction"],
    )
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
def test_cprd_from_mined_hard_negatives_of_both_directions(dtype):
    """Top-K mining, threshold on the teacher's probability and both directions, against one golden loss."""
    (case,) = END_TO_END
    similarity = leaf(case["inputs"]["sim"], dtype)
    probability = torch.tensor(case["inputs"]["teacher_matrix_image_by_text"], dtype=dtype)
    logits = probability.log() - (-probability).log1p()  # the objective takes raw logits

    def one_direction(scores, teacher):
        negatives = scores.detach().clone().fill_diagonal_(-math.inf).topk(case["params"]["K"], dim=1).indices
        return cprd_loss(
            scores.gather(1, negatives),
            teacher.gather(1, negatives),
            temperature=case["params"]["tau"],
            valid_threshold=case["params"]["valid_threshold"],
            reduction=case["params"]["reduction"],
        )

    image_to_text = one_direction(similarity, logits)
    text_to_image = one_direction(similarity.T, logits.T)
    (image_to_text + text_to_image).backward()
    assert_golden(image_to_text, case["expected"]["loss_i2t"], dtype)
    assert_golden(text_to_image, case["expected"]["loss_t2i"], dtype)
    assert_golden(similarity.grad, case["expected"]["grad_sim"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("list_kl"), ids=case_name)
def test_list_kl(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    loss = list_kl_loss(
        student,
        torch.tensor(case["inputs"]["teacher_scores"], dtype=dtype),
        temperature=case["params"]["student_temperature"],
        teacher_temperature=case["params"]["teacher_temperature"],
        direction=case["params"]["direction"],
        scale_by_temperature_squared=case["params"]["scale_by_student_temperature_squared"],
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("st_distill_kl"), ids=case_name)
def test_list_kl_is_sentence_transformers_distill_kl(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    both = case["params"].get("temperature")
    temperature = both if both is not None else case["params"]["student_temperature"]
    loss = list_kl_loss(
        student,
        torch.tensor(case["inputs"]["teacher_scores"], dtype=dtype),
        temperature=temperature,
        teacher_temperature=both if both is not None else case["params"]["teacher_temperature"],
        scale_by_temperature_squared=True,
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)


@every_dtype
@pytest.mark.parametrize("case", [*cases("margin_mse"), *cases("st_margin_mse")], ids=case_name)
def test_margin_mse_is_the_authors_and_sentence_transformers(case, dtype):
    student = leaf(case["inputs"]["student_scores"], dtype)
    if "teacher_margins" in case["inputs"]:  # margins are the scores of a list whose positive scores 0
        margins = torch.tensor(case["inputs"]["teacher_margins"], dtype=dtype)
        teacher = torch.cat([torch.zeros_like(margins[:, :1]), -margins], dim=1)
    else:
        teacher = torch.tensor(case["inputs"]["teacher_scores"], dtype=dtype)
    loss = margin_mse_loss(student, teacher, positive=torch.zeros(len(student), dtype=torch.int64))
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_scores"], dtype)
