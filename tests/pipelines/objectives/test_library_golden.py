"""Parity of the library losses with the official code: value and gradient, float64 and float32.

Why: no job uses these yet, so nothing but these numbers would notice that one of them is not the loss it is called.
"""

import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, flags, leaf

from pipelines.objectives.bag_of_words import bag_of_words_loss, ordinary_token_embedding
from pipelines.objectives.layer_distillation import layer_distillation_loss
from pipelines.objectives.loss_prediction import loss_prediction_loss

HPM, MATVLM, DUPMAE = cases("hpm_loss_predictor"), cases("matvlm_distill"), cases("dupmae_bow")
FORM = {"kl": "kl", "jsd": "jsd_swapped", "reverse": "reverse", "ce": "cross_entropy", "l2": "l2"}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def test_no_golden_library_case_is_forgotten():
    assert (len(HPM), len(MATVLM), len(DUPMAE)) == (4, 8, 1)
    assert {case["params"]["loss_type"] for case in MATVLM} == FORM.keys()
    for case in [*HPM, *MATVLM]:
        assert len(case["expected"]) == 2, "an output that the tests below do not compare"
    assert set(DUPMAE[0]["expected"]) == {"loss", "grad_logits", "ot_embedding"}


@every_dtype
@pytest.mark.parametrize("case", HPM, ids=case_name)
def test_loss_prediction_with_the_codes_epsilon(case, dtype):
    predicted = leaf(case["inputs"]["loss_pred"], dtype)
    loss = loss_prediction_loss(
        predicted,
        torch.tensor(case["inputs"]["loss_target"], dtype=dtype),
        form="relative" if case["params"]["relative"] else "absolute",
        epsilon=1e-6,
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(predicted.grad, case["expected"]["grad_loss_pred"], dtype)


@pytest.mark.parametrize("case", HPM, ids=case_name)
def test_exact_loss_prediction_differs_from_the_code_by_its_epsilon_only(case):
    """Without the 1e-6 the value moves by about 1e-6, and not by nothing: the option has an effect."""
    arguments = [torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("loss_pred", "loss_target")]
    exact = loss_prediction_loss(*arguments, form="relative" if case["params"]["relative"] else "absolute")
    difference = abs(float(exact) - case["expected"]["loss"])
    assert 1e-8 < difference < 1e-5


@every_dtype
@pytest.mark.parametrize("case", MATVLM, ids=case_name)
def test_layer_distillation_is_the_code_whose_jsd_has_swapped_arguments(case, dtype):
    student = leaf(case["inputs"]["student_logits"], dtype)
    loss = layer_distillation_loss(
        student,
        torch.tensor(case["inputs"]["teacher_logits"], dtype=dtype),
        form=FORM[case["params"]["loss_type"]],
        temperature=case["params"]["temperature"],
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(student.grad, case["expected"]["grad_student_logits"], dtype)


@every_dtype
def test_bag_of_words(dtype):
    (case,) = DUPMAE
    logits, mask = leaf(case["inputs"]["logits"], dtype), flags(case["inputs"]["attention_mask"])
    loss = bag_of_words_loss(logits, torch.tensor(case["inputs"]["bag_word_weight"], dtype=dtype), mask)
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(logits.grad, case["expected"]["grad_logits"], dtype)
    assert_golden(ordinary_token_embedding(logits.detach(), mask), case["expected"]["ot_embedding"], dtype)
