"""Losses that learn from the teacher's order: what their options change, and what they refuse.

Why: each option exists because two public codes disagree, or because raw logits are no grades; a student must feel it.
"""

import math

import pytest
import torch
from plain_ranking import (
    lists,
)

from pipelines.errors import ObjectiveError
from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.approx_ndcg import approx_ndcg_loss
from pipelines.objectives.grades import normalised_gains
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_mle import list_mle_loss, p_list_mle_loss
from pipelines.objectives.ranknet import ranknet_loss


def test_ranknet_drops_pairs_at_the_margin_and_keeps_those_above():
    """Margin 1: of logits 0, 1, 2.5 only (2.5, 0) and (2.5, 1) are ordered, so the first two are not told apart."""
    student = torch.zeros(1, 3, requires_grad=True)
    ranknet_loss(student, torch.tensor([[0.0, 1.0, 2.5]]), temperature=1, tie_margin=1.0).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.25, 0.25, -0.5]]))


def test_ranknet_reads_a_float64_teacher_beside_a_float32_student():
    """In float32 these two logits would tie and teach nothing."""
    student = torch.tensor([[0.2, 0.3]], requires_grad=True)
    ranknet_loss(student, torch.tensor([[1.0 + 1e-12, 1.0]], dtype=torch.float64)).backward()
    assert float(student.grad[0, 0]) < 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: ranknet_loss(s, t, temperature=0.01),
        lambda s, t: lambda_loss(s, t, temperature=0.01, weighting="none", log_base="natural"),
    ],
)
def test_badly_misordered_pairs_keep_their_gradient(loss):
    """Official code of that commit clamps the sigmoid at 1e-10 and then has no gradient where it is needed most."""
    student = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    loss(student, torch.tensor([[1.0, 0.0]])).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-100.0, 100.0]]))


@pytest.mark.parametrize("function", [ranknet_loss, lambda_loss])
def test_top_k_decides_who_learns(function):
    """Student order is column order and all wrong: with `both` nobody outside the first two columns learns."""
    teacher = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    def learners(top_k, rule):
        student = torch.tensor([[0.4, 0.3, 0.2, 0.1]], requires_grad=True)
        function(student, teacher, top_k=top_k, top_k_pairs=rule).backward()
        return (student.grad != 0).flatten().tolist(), student.grad

    assert learners(2, "both")[0] == [True, True, False, False]
    everybody, of_two = learners(2, "either")
    assert everybody == [True, True, True, True]
    assert not torch.equal(of_two, learners(None, "either")[1])


def test_lambda_loss_pays_most_attention_to_the_top():
    """The same swap costs more in the first two places than in the last two; without weights it costs the same."""
    teacher = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    perfect = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    top, bottom = [0.5, 0.6, *perfect[2:]], [*perfect[:4], 0.1, 0.2]
    for weighting in ("lambda_rank", "ndcg_loss2", "ndcg_loss2pp"):
        at_top, at_bottom = (float(lambda_loss(torch.tensor([s]), teacher, weighting=weighting)) for s in (top, bottom))
        assert at_top > at_bottom
    at_top, at_bottom = (float(lambda_loss(torch.tensor([s]), teacher, weighting="none")) for s in (top, bottom))
    assert at_top == pytest.approx(at_bottom)


def test_mu_zero_is_lambda_rank_and_a_large_mu_ndcg_loss2():
    student, teacher, mask = lists(1)

    def value(**options):
        return float(lambda_loss(student, teacher, mask, **options))

    assert value(mu=0.0) == pytest.approx(value(weighting="lambda_rank"))
    assert value(mu=1e6) / 1e6 == pytest.approx(value(weighting="ndcg_loss2"), rel=1e-4)


@pytest.mark.parametrize("highest", [10.0, 200.0, 1e4])
def test_high_grades_do_not_overflow(highest):
    """2^200 is beyond float32; only the ratio of gains matters, here 2 to 1."""
    grades = torch.tensor([[highest, highest - 1, 0.0]])
    gain = normalised_gains("x", grades, torch.ones(1, 3, dtype=torch.bool), grades="as_given")
    assert bool(torch.isfinite(gain).all())
    assert float(gain[0, 0] / gain[0, 1]) == pytest.approx(2, rel=2e-3)
    assert float(gain[0, 2]) == 0


def test_p_list_mle_weighs_a_list_of_thousands():
    """2^4000 overflows; the first place must still have about half of the weight, and the weights sum to 1."""
    size = 4000
    student = torch.zeros(1, size, requires_grad=True)
    loss = p_list_mle_loss(student, -torch.arange(float(size)).unsqueeze(0), temperature=1)
    loss.backward()
    # Equal scores: draw j costs log(size - j), nearly the same where there is weight.
    assert loss.item() == pytest.approx(math.log(size), abs=1e-3)
    assert float(student.grad[0, 0]) == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("function", [adr_mse_loss, approx_ndcg_loss])
def test_rank_losses_vanish_on_the_teachers_order_at_low_temperature(function):
    student = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    assert float(function(student, student * 7, temperature=1e-3)) == pytest.approx(0, abs=1e-6)
    assert float(function(student, -student, temperature=1e-3)) > 0.1


def test_adr_mse_asks_for_ties_where_the_teacher_ties():
    student = torch.tensor([[0.5, 0.2, 0.2, 0.0]], requires_grad=True)
    loss = adr_mse_loss(student, torch.tensor([[3.0, 1.0, 1.0, 0.0]]), temperature=1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(student.grad, torch.zeros(1, 4))


@pytest.mark.parametrize(
    "loss",
    [
        ranknet_loss,
        lambda_loss,
        lambda s, t, m: lambda_loss(s, t, m, weighting="ndcg_loss1", reduction="mean_over_pairs"),
        lambda s, t, m: lambda_loss(s, t.abs(), m, grades="as_given"),
        approx_ndcg_loss,
        lambda s, t, m: approx_ndcg_loss(s, t.abs(), m, grades="as_given"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -3.25])
def test_a_tied_teacher_teaches_nothing(loss, value):
    """Exactly 0 and no gradient, in a batch of its own and beside a list that teaches."""
    student, _, mask = lists(2)
    student.requires_grad_()
    tied = torch.full_like(student, value)
    alone = loss(student, tied, mask)
    alone.backward()
    assert alone.item() == 0
    assert not bool(student.grad.any())
    tied[4] = torch.arange(7.0)
    loss(student, tied, mask).backward()
    assert not bool(student.grad[:4].any())
    assert bool(student.grad[4].any())


@pytest.mark.parametrize(
    "function", [ranknet_loss, list_mle_loss, p_list_mle_loss, lambda_loss, adr_mse_loss, approx_ndcg_loss]
)
def test_lists_of_one_cost_exactly_nothing(function):
    """Rounding in float32 would leave 1e-7 of the last draw of a list, value and gradient, for autograd to follow."""
    student = torch.rand(50, 3, generator=torch.Generator().manual_seed(4)).requires_grad_()
    mask = torch.arange(3).expand(50, 3) == 1
    loss = function(student, torch.ones(50, 3), mask)
    loss.backward()
    assert loss.item() == 0
    assert not bool(student.grad.any())


@pytest.mark.parametrize("function", [list_mle_loss, p_list_mle_loss])
def test_lists_keep_column_order_where_the_teacher_ties(function):
    """Wide enough that an unstable sort really reorders ties."""
    student = torch.rand(1, 3000, generator=torch.Generator().manual_seed(2))
    tied = function(student, torch.zeros(1, 3000))
    assert torch.equal(tied, function(student, -torch.arange(3000.0).unsqueeze(0)))


SQUARE = torch.zeros(2, 3)


@pytest.mark.parametrize("function", [lambda_loss, approx_ndcg_loss])
def test_negative_grades_are_refused_with_advice(function):
    """Raw logits given as grades would have gains below 0 and an nDCG without meaning."""
    teacher, mask = torch.tensor([[0.0, 2.0, -1.5], [-7.0, 0.0, 1.0]]), torch.ones(2, 3, dtype=torch.bool)
    mask[1, 0] = False
    with pytest.raises(ObjectiveError, match=r"1 of 6 are, the first \(-1\.5\) at \(0, 2\).*'teacher_rank'"):
        function(SQUARE, teacher, mask, grades="as_given")
    function(SQUARE, teacher.masked_fill(teacher == -1.5, 0), mask, grades="as_given")  # padding may be negative


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranknet_loss(SQUARE, SQUARE, temperature=0), "ranknet: temperature"),
        (lambda: ranknet_loss(SQUARE, SQUARE, tie_margin=-1), "ranknet: tie_margin .* got -1"),
        (lambda: ranknet_loss(SQUARE, SQUARE, tie_margin=math.nan), "ranknet: tie_margin"),
        (lambda: ranknet_loss(SQUARE, SQUARE, top_k=0), "ranknet: top_k must be at least 1, got 0"),
        (lambda: ranknet_loss(SQUARE, SQUARE, top_k_pairs="any"), "ranknet: unknown top_k_pairs 'any'"),
        (lambda: ranknet_loss(SQUARE, SQUARE, log_base="ten"), "ranknet: unknown log_base 'ten'"),
        (lambda: list_mle_loss(SQUARE, SQUARE, temperature=math.inf), "list_mle: temperature"),
        (lambda: p_list_mle_loss(SQUARE, SQUARE, temperature=-1), "p_list_mle: temperature"),
        (lambda: p_list_mle_loss(SQUARE, SQUARE, weight_ranks="one"), "p_list_mle: unknown weight_ranks 'one'"),
        (lambda: lambda_loss(SQUARE, SQUARE, temperature=0), "lambda_loss: temperature"),
        (lambda: lambda_loss(SQUARE, SQUARE, mu=-0.5), "lambda_loss: mu .* got -0.5"),
        (lambda: lambda_loss(SQUARE, SQUARE, top_k=-2), "lambda_loss: top_k must be at least 1, got -2"),
        (lambda: lambda_loss(SQUARE, SQUARE, weighting="ndcg"), "lambda_loss: unknown weighting 'ndcg'"),
        (lambda: lambda_loss(SQUARE, SQUARE, reduction="mean"), "lambda_loss: unknown reduction 'mean'"),
        (lambda: lambda_loss(SQUARE, SQUARE, grades="binary"), "lambda_loss: unknown grades 'binary'"),
        (lambda: adr_mse_loss(SQUARE, SQUARE, temperature=0), "adr_mse: temperature"),
        (lambda: approx_ndcg_loss(SQUARE, SQUARE, temperature=0), "approx_ndcg: temperature"),
        (lambda: approx_ndcg_loss(SQUARE, SQUARE, grades="binary"), "approx_ndcg: unknown grades 'binary'"),
    ],
)
def test_impossible_parameters_are_refused_by_name_and_value(call, message):
    with pytest.raises(ObjectiveError, match=message):
        call()
