"""Losses of a retriever and its ranker (RocketQAv2, AR2): paper and code forms, who learns from which part.

Why: golden files have neither padding nor queries without a positive, and every batch of a job has both. So each loss
is also held to a loop that was written from the paper's formula, on ragged lists.
"""

import math

import pytest
import torch
from ragged_lists import LENGTHS, POSITIVE, close, ragged, rows, sigmoid, softmax
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.ar2 import ar2_code_compat_loss, ar2_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.ranker_loss import ranker_loss
from pipelines.objectives.rocketqa_v2 import rocketqa_v2_loss


@pytest.mark.parametrize(("form", "direction"), [("paper", "reverse"), ("code", "forward")])
def test_rocketqa_v2_with_stored_scores_moves_the_student_as_list_kl_does(form, direction):
    student, teacher, mask = ragged()
    settings = {"temperature": 0.2, "teacher_temperature": 2.0}
    loss = rocketqa_v2_loss(student, teacher, mask, positive=POSITIVE, form=form, **settings)
    (gradient,) = torch.autograd.grad(loss, student)
    (same,) = torch.autograd.grad(list_kl_loss(student, teacher, mask, direction=direction, **settings), student)
    per_cell = 1.0 if form == "paper" else 5 / sum(LENGTHS)
    torch.testing.assert_close(gradient, same * per_cell, rtol=1e-9, atol=1e-12)


def test_a_query_without_a_positive_adds_its_divergence_to_rocketqa_v2_and_no_cross_entropy():
    student, teacher, mask = ragged()
    learning = teacher.requires_grad_()
    divergence = list_kl_loss(student, teacher, mask, direction="reverse", temperature=0.2)
    loss = rocketqa_v2_loss(student, learning, mask, positive=POSITIVE, temperature=0.2)
    expected = [-math.log(softmax(ts)[p]) for _, ts, p in rows(student, teacher.detach(), mask) if p >= 0]
    close(loss - divergence, sum(expected) / 4)
    loss.backward()
    assert bool(learning.grad[2].any()), "the divergence still teaches the ranker"


def test_the_divergence_of_rocketqa_v2s_code_gives_the_ranker_no_gradient():
    student, teacher, mask = ragged()
    teacher.requires_grad_()
    none = torch.full((5,), -1)
    rocketqa_v2_loss(student, teacher, mask, positive=none, form="code").backward()
    assert not bool(teacher.grad.any())
    assert bool(student.grad.any())


def test_rocketqa_v2_refuses_an_unknown_form():
    with pytest.raises(ObjectiveError, match="unknown form 'paddle'"):
        rocketqa_v2_loss(torch.zeros(5, 2), torch.zeros(5, 2), positive=POSITIVE.clamp(max=1), form="paddle")


def test_ar2_has_the_papers_value_and_gradient():
    student, teacher, mask = ragged()
    loss = ar2_loss(student, teacher, mask, positive=POSITIVE, temperature=0.2, teacher_temperature=2.0)
    loss.backward()
    total, expected = 0.0, torch.zeros_like(student)
    for i, (ss, ts, p) in enumerate(rows(student, teacher, mask)):
        negatives = [m for m in range(len(ss)) if m != p]
        if p < 0 or not negatives:
            continue
        share = softmax([ss[m] / 0.2 for m in negatives])
        reward = [math.log(sigmoid((ts[p] - ts[m]) / 2)) for m in negatives]
        value = sum(q * r for q, r in zip(share, reward, strict=True))
        total += value
        for m, q, r in zip(negatives, share, reward, strict=True):
            expected[i, m] = q * (r - value) / 0.2 / 4
    close(loss, total / 4)
    torch.testing.assert_close(student.grad, expected, rtol=1e-9, atol=1e-12)


def test_ar2_raises_the_negatives_that_confuse_the_ranker_most():
    student = torch.zeros(1, 4, requires_grad=True)
    teacher = torch.tensor([[5.0, 6.0, 0.0, -5.0]])
    ar2_loss(student, teacher, positive=torch.tensor([0])).backward()
    assert student.grad[0, 0] == 0
    assert student.grad[0, 1] < 0 < student.grad[0, 2] < student.grad[0, 3]


def test_a_list_that_is_all_positive_adds_nothing_to_ar2():
    student = torch.rand(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    both = ar2_loss(student, student.detach() * 4, mask, positive=torch.tensor([0, 1]))
    second = ar2_loss(student[1:], student.detach()[1:] * 4, positive=torch.tensor([1]))
    both.backward()
    assert both.item() == pytest.approx(second.item() / 2)
    assert not bool(student.grad[0].any())


@pytest.mark.parametrize("epsilon", [1e-7, 0.0])
def test_ar2_code_compat_is_its_formula_on_ragged_lists(epsilon):
    """A query without a positive keeps its regulariser; the divisors differ, as in the code."""
    student, teacher, mask = ragged()
    loss = ar2_code_compat_loss(
        student,
        teacher,
        mask,
        positive=POSITIVE,
        temperature=0.4,
        teacher_temperature=2.0,
        adversarial_weight=0.3,
        epsilon=epsilon,
    )
    adversarial = imitation = 0.0
    for ss, ts, p in rows(student, teacher, mask):
        if len(ss) < 2:
            continue
        logs = [math.log(q + epsilon) for q in softmax([s / 0.4 for s in ss])]
        imitation -= sum(r * log for r, log in zip(softmax([t / 2 for t in ts]), logs, strict=True))
        if p >= 0:
            rewards = [math.log(sigmoid(ts[p] - t) + epsilon) for t in ts]
            adversarial += sum(r * log for r, log in zip(rewards, logs, strict=True))
    close(loss, 0.3 * adversarial + 0.7 * imitation / 5)


@pytest.mark.parametrize("epsilon", [1e-7, 0.0])
def test_ar2_code_compat_survives_extreme_scores(epsilon):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = ar2_code_compat_loss(student, teacher, positive=torch.tensor([0]), epsilon=epsilon)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize(
    "wrong", [{"adversarial_weight": 1.5}, {"adversarial_weight": math.nan}, {"epsilon": -1e-7}, {"epsilon": 1.0}]
)
def test_ar2_code_compat_refuses_impossible_parameters(wrong):
    (name,) = wrong
    with pytest.raises(ObjectiveError, match=f"ar2_code_compat: {name}"):
        ar2_code_compat_loss(torch.zeros(1, 2), torch.zeros(1, 2), positive=torch.tensor([0]), **wrong)


def test_ranker_loss_is_cross_entropy_over_the_real_candidates():
    scores, _, mask = ragged()
    kept = POSITIVE >= 0
    filled = scores.masked_fill(~mask, -math.inf)
    expected = functional.cross_entropy(filled[kept], POSITIVE[kept])
    torch.testing.assert_close(ranker_loss(scores, POSITIVE, mask), expected, rtol=1e-12, atol=0)


def test_ranker_loss_of_a_batch_without_positives_is_zero_with_zero_gradient():
    scores, _, mask = ragged()
    loss = ranker_loss(scores, torch.full((5,), -1), mask)
    loss.backward()
    assert loss.item() == 0
    assert not bool(scores.grad.any())


def test_ranker_loss_computes_half_precision_in_float32():
    scores = ragged(dtype=torch.float32)[0].detach().bfloat16()
    loss = ranker_loss(scores, POSITIVE)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ranker_loss(scores.float(), POSITIVE))


@pytest.mark.parametrize(
    ("scores", "mask", "message"),
    [
        (torch.zeros(5, 1), None, "at least 2 candidates"),
        (torch.zeros(5, 3).long(), None, "floating"),
        (torch.zeros(5), None, "queries, candidates"),
        (torch.zeros(5, 3), torch.ones(5, 3), "mask must be bool"),
        (torch.full((5, 3), math.nan), None, "scores has 15 NaN"),
    ],
)
def test_ranker_loss_refuses_inputs_that_would_give_a_wrong_loss(scores, mask, message):
    with pytest.raises(ObjectiveError, match=rf"^ranker_loss: .*{message}"):
        ranker_loss(scores, POSITIVE, mask)


def test_ar2_takes_no_further_positive_for_a_negative():
    student, teacher = torch.tensor([[0.1, 0.5, 0.3]]), torch.tensor([[2.0, 9.0, 1.0]])
    first = torch.zeros(1, dtype=torch.int64)
    both = torch.tensor([[True, True, False]])
    with_two = ar2_loss(student, teacher, positive=first, positives=both)
    without_it = ar2_loss(student[:, [0, 2]], teacher[:, [0, 2]], positive=first)
    assert torch.equal(with_two, without_it)
