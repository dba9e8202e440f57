"""Dual heads against DHO's official numbers: the loss of both heads, their gradients, the interpolated probabilities.

Why: DHO is no objective of its own but a composition (cross-entropy on one head, list KL on the other), so nothing but
its published code shows that the parts add up to it.
"""

import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, leaf

from pipelines.objectives.list_kl import list_kl_loss
from pipelines.spec import DualHeadSpec
from pipelines.student.heads import DualHeads, interpolated_probabilities

DHO = cases("dho_dual_head")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def test_no_golden_dho_case_is_forgotten():
    assert len(DHO) == 1


@every_dtype
@pytest.mark.parametrize("case", DHO, ids=case_name)
def test_dho_is_cross_entropy_on_one_head_and_list_kl_on_the_other(case, dtype):
    given, expected = case["inputs"], case["expected"]
    contrastive = leaf(given["ce_labeled"], dtype)
    labelled, unlabelled = leaf(given["kd_labeled"], dtype), leaf(given["kd_unlabeled"], dtype)

    def distilled(student, teacher):
        return list_kl_loss(
            student,
            torch.tensor(teacher, dtype=dtype),
            temperature=case["params"]["temperature"],
            teacher_temperature=case["params"]["temperature"],
            scale_by_temperature_squared=True,
        )

    cross_entropy = torch.nn.functional.cross_entropy(contrastive, torch.tensor(given["labels"]))
    on_labelled = distilled(labelled, given["t_labeled"])
    on_unlabelled = distilled(unlabelled, given["t_unlabeled"])
    loss = cross_entropy + on_labelled + on_unlabelled
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    assert_golden(cross_entropy, expected["ce"], dtype)
    assert_golden(on_labelled, expected["kd_labeled"], dtype)
    assert_golden(on_unlabelled, expected["kd_unlabeled"], dtype)
    assert_golden(contrastive.grad, expected["grad_ce_labeled"], dtype)
    assert_golden(labelled.grad, expected["grad_kd_labeled"], dtype)
    assert_golden(unlabelled.grad, expected["grad_kd_unlabeled"], dtype)


@every_dtype
@pytest.mark.parametrize("case", DHO, ids=case_name)
def test_interpolated_probabilities_are_dhos(case, dtype):
    mixed = interpolated_probabilities(
        torch.tensor(case["inputs"]["ce_labeled"], dtype=dtype),
        torch.tensor(case["inputs"]["kd_labeled"], dtype=dtype),
        alpha=case["params"]["alpha"],
        beta=case["params"]["beta"],
    )
    assert_golden(mixed, case["expected"]["mixed_probs"], dtype)


@pytest.mark.parametrize("case", DHO, ids=case_name)
def test_in_retrieval_one_folded_vector_scores_as_the_two_heads_of_dho_do(case):
    """What DHO interpolates per class, search needs as one inner product: the same alpha and beta, folded once."""
    alpha, beta = case["params"]["alpha"], case["params"]["beta"]
    torch.manual_seed(0)
    heads = DualHeads(6, DualHeadSpec(dimension=4, alpha=alpha, beta=beta)).double()
    queries, documents = torch.randn(5, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        contrastive = heads.contrastive(queries) @ heads.contrastive(documents).T
        distillation = heads.distillation(queries) @ heads.distillation(documents).T
        folded = heads.served_weight()
        scores = (queries @ folded.T) @ (documents @ folded.T).T
    torch.testing.assert_close(scores, alpha * contrastive + (1 - alpha) * distillation / beta, rtol=0, atol=1e-12)
