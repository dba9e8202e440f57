"""Binary KL: each pair by itself. Its formula, what its two forms disagree about, and its calibration.

Why: it is the one distillation loss that sees an offset per query. A student of cosines has neither the level nor the
range of a logit, so that without a bias and a temperature that are learned it cannot become calibrated.
"""

import math

import pytest
import torch
from ragged_lists import close, coin, ragged, rows, sigmoid

from pipelines.errors import ObjectiveError
from pipelines.objectives.binary_kl import binary_kl_loss, binary_kl_norm_loss


def test_binary_kl_and_its_norm_are_their_formulas():
    student, teacher, mask = ragged()
    settings = {"temperature": 0.5, "teacher_temperature": 3.0, "bias": -1.3}
    plain = norm = 0.0
    for ss, ts, _ in rows(student, teacher, mask):
        if len(ss) > 1:
            plain += sum(coin(sigmoid(t / 3), sigmoid(s / 0.5 - 1.3)) for s, t in zip(ss, ts, strict=True))
            norm += sum(coin(0.5, sigmoid(s / 0.5 - 1.3 - t / 3)) for s, t in zip(ss, ts, strict=True))
    close(binary_kl_loss(student, teacher, mask, **settings), plain / 5)
    close(binary_kl_norm_loss(student, teacher, mask, **settings), norm / 5)
    scaled = binary_kl_norm_loss(student, teacher, mask, scale_by_temperature_squared=True, **settings)
    close(scaled, norm / 5 * 0.5**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_cost_binary_kl_nothing_and_get_no_gradient(dtype):
    teacher = torch.tensor([[7.0, -3.0, 0.1, 40.0]], dtype=dtype)
    for loss in (binary_kl_loss, binary_kl_norm_loss):
        student = (teacher * 0.25).requires_grad_()
        value = loss(student, teacher, temperature=0.25)
        value.backward()
        assert value.item() == 0
        assert float(student.grad.abs().max()) < 1e-7


def test_binary_kl_norm_is_symmetric_in_the_difference():
    student, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    there = binary_kl_norm_loss(student, teacher, temperature=1)
    torch.testing.assert_close(binary_kl_norm_loss(teacher, student, temperature=1), there, rtol=1e-12, atol=0)
    back = binary_kl_loss(teacher, student, temperature=1)
    assert not torch.isclose(binary_kl_loss(student, teacher, temperature=1), back)


def test_only_binary_kl_norm_still_pulls_where_the_teacher_saturates():
    """Logits 12 and 30 are the same probability in all digits that matter, yet differ as scores."""
    for loss, pull in ((binary_kl_loss, 0.0), (binary_kl_norm_loss, 0.5)):
        student = torch.full((1, 2), 12.0, requires_grad=True)
        loss(student, torch.full((1, 2), 30.0), temperature=1).backward()
        assert -student.grad[0, 0].item() == pytest.approx(pull, abs=1e-4)


@pytest.mark.parametrize("loss", [binary_kl_loss, binary_kl_norm_loss])
def test_beyond_binary_kls_clamp_the_student_gets_no_gradient(loss):
    teacher = torch.tensor([[0.0, 0.0]])
    for clamp, moved in ((None, True), (1e-8, True), (0.01, False)):
        student = torch.tensor([[9.0, -9.0]], requires_grad=True)
        loss(student, teacher, temperature=1, probability_clamp=clamp).backward()
        assert bool((student.grad != 0).all()) is moved


@pytest.mark.parametrize("clamp", [0.0, 0.5, -1e-8, math.nan])
def test_binary_kl_refuses_an_impossible_clamp(clamp):
    with pytest.raises(ObjectiveError, match="binary_kl: probability_clamp"):
        binary_kl_loss(torch.zeros(1, 2), torch.zeros(1, 2), probability_clamp=clamp)


@pytest.mark.parametrize("bias", [math.inf, -math.inf, math.nan, torch.tensor(math.nan)])
def test_binary_kl_refuses_an_impossible_bias(bias):
    for loss in (binary_kl_loss, binary_kl_norm_loss):
        with pytest.raises(ObjectiveError, match="bias must be a finite number"):
            loss(torch.zeros(1, 2), torch.zeros(1, 2), bias=bias)


@pytest.mark.parametrize("loss", [binary_kl_loss, binary_kl_norm_loss])
def test_a_learned_temperature_and_bias_calibrate_cosines(loss):
    """Logits from -4.2 to 1.4 and cosines from 0.1 to 0.8: two numbers bridge that, and gradient finds them."""
    cosines = torch.tensor([[0.1, 0.45, 0.8], [0.2, 0.3, 0.7]], dtype=torch.float64)
    teacher = 8 * cosines - 5
    log_temperature, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (math.log(0.05), 0.0))
    optimizer = torch.optim.Adam([log_temperature, bias], lr=0.1)
    start = loss(cosines, teacher).item()
    for _ in range(600):
        optimizer.zero_grad()
        value = loss(cosines, teacher, temperature=log_temperature.exp(), bias=bias)
        value.backward()
        optimizer.step()
    assert start > 1
    assert value.item() < 1e-4
    assert log_temperature.exp().item() == pytest.approx(1 / 8, rel=0.02)
    assert bias.item() == pytest.approx(-5, rel=0.02)


def test_a_learned_bias_hears_neither_padding_nor_lists_of_one():
    student, teacher, mask = ragged()
    gradients = []
    for s, t, m in ((student, teacher, mask), (student[:4, :], teacher[:4].masked_fill(~mask[:4], 99.0), mask[:4])):
        bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(binary_kl_loss(s, t, m, bias=bias) * len(s), bias)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
    assert bool(gradients[0] != 0)


def test_the_scaling_by_temperature_squared_is_a_constant_to_a_learned_temperature():
    """Through that factor alone any loss could be brought to 0."""
    student, teacher, mask = ragged()
    gradients = {}
    for scaled in (False, True):
        temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss = binary_kl_loss(student, teacher, mask, temperature=temperature, scale_by_temperature_squared=scaled)
        (gradients[scaled],) = torch.autograd.grad(loss, temperature)
    torch.testing.assert_close(gradients[True], gradients[False] * 0.3**2, rtol=1e-12, atol=0)
