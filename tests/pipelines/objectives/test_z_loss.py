"""Z-loss: its formula on ragged lists, and that scale does not matter to it, where squares would leave float32.

Why: it divides by a deviation that may be 0, or what rounding makes of 0.
"""

import math

import pytest
import torch
from ragged_lists import POSITIVE, close, ragged, rows

from pipelines.errors import ObjectiveError
from pipelines.objectives.z_loss import z_loss


def test_z_loss_is_the_formula_on_ragged_lists():
    student, _, mask = ragged()
    total = 0.0
    for ss, _, p in rows(student, student.detach(), mask):
        if p < 0 or len(ss) < 2:
            continue
        mean = sum(ss) / len(ss)
        deviation = math.sqrt(sum((s - mean) ** 2 for s in ss) / len(ss))
        total += math.log1p(math.exp(2.0 * (1.5 - (ss[p] - mean) / deviation))) / 2.0
    close(z_loss(student, mask, positive=POSITIVE, a=2.0, b=1.5), total / 4)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e30])
def test_a_row_of_equal_scores_adds_nothing_to_z_loss(value):
    """Its deviation is 0, or what rounding makes of 0."""
    scores = torch.full((2, 7), value)
    scores[1] = torch.arange(7)
    scores.requires_grad_()
    loss = z_loss(scores, positive=torch.tensor([3, 3]))
    loss.backward()
    assert loss.item() == pytest.approx(z_loss(scores[1:], positive=torch.tensor([3])).item() / 2)
    assert not bool(scores.grad[0].any())
    assert bool(scores.grad[1].any())


def test_z_loss_takes_scores_that_differ_by_rounding_for_equal():
    """Such a difference is noise, and its gradient would be one over it."""
    scores = torch.tensor([[0.1, 0.1 + 7e-9, 0.1]], requires_grad=True)
    loss = z_loss(scores + 1e-8, positive=torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert not bool(scores.grad.any())


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e3, 1e30])
def test_scale_does_not_matter_to_z_loss_even_where_squares_would_leave_float32(factor):
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    positive = torch.tensor([0, 4, 2])
    reference = scores.clone().requires_grad_()
    scaled = (scores * factor).requires_grad_()
    before, after = z_loss(reference, positive=positive), z_loss(scaled, positive=positive)
    before.backward()
    after.backward()
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled.grad * factor, reference.grad, rtol=1e-4, atol=1e-6)


def test_z_loss_has_a_gradient_orthogonal_to_the_scores():
    """Of two candidates that differ, z is +-1: no gradient at all."""
    student, _, _ = ragged()
    z_loss(student, positive=POSITIVE).backward()
    torch.testing.assert_close((student.grad * student).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    pair = torch.tensor([[0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    z_loss(pair, positive=torch.tensor([0])).backward()
    assert float(pair.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("wrong", [{"a": 0.0}, {"a": -1.0}, {"b": math.inf}, {"b": math.nan}])
def test_z_loss_refuses_impossible_parameters(wrong):
    (name,) = wrong
    with pytest.raises(ObjectiveError, match=f"z_loss: {name}"):
        z_loss(torch.zeros(1, 2), positive=torch.tensor([0]), **wrong)
