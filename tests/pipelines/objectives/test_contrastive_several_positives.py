"""Decoupled softmax and soft top-k: what several positives of one query are to each other.

Why: golden files hold one small batch each, and official code has brackets and constants that long lists and saturated
scores leave behind. Here both are solved against their defining equations.
"""

import pytest
import torch
from contrastive_batch import Batch, few, seeds
from hypothesis import given
from hypothesis import strategies as st

from pipelines.objectives.decoupled_softmax import decoupled_softmax_loss
from pipelines.objectives.soft_top_k import log_soft_top_k, soft_top_k_loss


@given(seeds, st.sampled_from(["decoupled", "softmax", "binary"]), st.booleans())
@few
def test_decoupled_softmax_is_its_equations(seed, form, weighted):
    b = Batch(seed)
    scores = b.q @ b.d.T / 0.1
    weighted = weighted and form != "binary"
    weights = b.teacher.abs() if weighted else torch.ones_like(scores)
    rows = []
    for i in range(5):
        mine, others = b.relevant[i], ~b.relevant[i]
        if not mine.any():
            continue
        terms = []
        for p in mine.nonzero()[:, 0]:
            rivals = scores[i, others] if form == "decoupled" else scores[i, torch.arange(9) != p]
            terms.append(weights[i, p] * (torch.cat([scores[i, p : p + 1], rivals]).logsumexp(0) - scores[i, p]))
        if form == "binary":
            signed = torch.where(mine, scores[i], -scores[i])
            rows.append(torch.log1p(torch.exp(-signed)).mean())
        else:
            rows.append(torch.stack(terms).mean() if form == "decoupled" else torch.stack(terms).sum())
    actual = decoupled_softmax_loss(
        b.q @ b.d.T, b.relevant, relevance_weights=weights if weighted else None, form=form, temperature=0.1
    )
    torch.testing.assert_close(actual, torch.stack(rows).mean(), rtol=1e-9, atol=1e-12)


def test_no_positive_pushes_another_down_in_the_decoupled_form():
    """The conflict that it removes: a softmax lowers the best positive because the others have to share with it."""
    scores = torch.tensor([[0.9, 0.2, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    relevant = torch.tensor([[True, True, False, False]])
    gradients = {
        form: torch.autograd.grad(decoupled_softmax_loss(scores, relevant, form=form, temperature=0.1), scores)[0]
        for form in ("decoupled", "softmax")
    }
    assert gradients["softmax"][0, 0] > 0
    assert bool((gradients["decoupled"][0, :2] < 0).all())
    assert bool((gradients["decoupled"][0, 2:] > 0).all())


@pytest.mark.parametrize("loss", [decoupled_softmax_loss, soft_top_k_loss])
def test_a_query_whose_documents_are_all_relevant_adds_nothing(loss):
    scores = torch.tensor([[0.3, 0.9, 0.1], [0.2, 0.5, 0.4]], dtype=torch.float64, requires_grad=True)
    relevant = torch.tensor([[True, True, True], [True, False, False]])
    value = loss(scores, relevant)
    value.backward()
    assert not bool(scores.grad[0].any())
    assert bool(scores.grad[1].any())
    assert value.item() == pytest.approx(loss(scores[1:], relevant[1:]).item() / 2)


@given(seeds, st.integers(1, 7), st.floats(0.2, 20))
@few
def test_soft_top_k_solves_its_equation(seed, k, alpha):
    """Against 200 bisections of the defining sum, and that sum itself."""
    scores = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    indicator = log_soft_top_k(scores, torch.full((3,), k), alpha=alpha, iterations=32).exp()
    torch.testing.assert_close(indicator.sum(1), torch.full((3,), float(k), dtype=torch.float64), rtol=0, atol=1e-9)
    low, high = torch.full((3, 1), -1e3, dtype=torch.float64), torch.full((3, 1), 1e3, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        enough = torch.sigmoid(alpha * (scores + middle)).sum(1, keepdim=True) >= k
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    torch.testing.assert_close(indicator, torch.sigmoid(alpha * (scores + high)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_soft_top_ks_implicit_gradient_is_the_solutions(k):
    """Finite differences move the offset, which a backward through a fixed offset would ignore."""
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(k), dtype=torch.float64, requires_grad=True)
    tied = torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    for values in (scores, tied):
        ks = torch.full((len(values),), k)
        assert torch.autograd.gradcheck(lambda x, ks=ks: log_soft_top_k(x, ks, alpha=2.0, iterations=32), (values,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e2, 2e5])
def test_soft_top_k_is_exact_when_every_sigmoid_is_saturated(scale, dtype):
    """Any offset between the k-th score and the next makes the sum k in float; the solution is the gap's middle."""
    scores = (torch.tensor([[9.0, 7.0, 3.0, 1.0]], dtype=dtype) * scale).requires_grad_()
    logs = log_soft_top_k(scores, torch.tensor([2]), alpha=1.0, iterations=32)
    torch.testing.assert_close(logs[0, 2:], torch.tensor([-2.0, -4.0], dtype=dtype) * scale, rtol=1e-5, atol=0)
    logs[0, 3].backward()
    expected = torch.tensor([[0.0, -0.5, -0.5, 1.0]], dtype=dtype)  # shares v / sum v: both sides of the gap alike
    torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-6)


def test_soft_top_k_holds_for_lists_so_long_that_the_official_bracket_does_not():
    """200,000 documents at sigmoid(-10) each already sum to 9: the offset lies below the official lower end."""
    scores = torch.zeros(1, 200_000, dtype=torch.float64)
    indicator = log_soft_top_k(scores, torch.tensor([5]), alpha=2.0, iterations=32).exp()
    assert indicator.sum().item() == pytest.approx(5.0, rel=1e-9)


def test_soft_top_k_makes_room_for_more_positives_than_k_and_cuts_k_to_the_batch():
    scores = torch.tensor([[0.4, 0.2, 0.3, 0.1]], dtype=torch.float64)
    three = torch.tensor([[True, True, True, False]])
    assert torch.equal(soft_top_k_loss(scores, three, k=1), soft_top_k_loss(scores, three, k=3))
    one = torch.tensor([[True, False, False, False]])
    assert torch.equal(soft_top_k_loss(scores, one, k=9), soft_top_k_loss(scores, one, k=3))
    assert not torch.equal(soft_top_k_loss(scores, one, k=1), soft_top_k_loss(scores, one, k=3))


def test_soft_top_k_lets_go_of_a_positive_that_is_in_the_top():
    """Rank 1 and rank 2 of a top 2 are alike to it; outside, the threshold's neighbours pay, not the far ones."""
    scores = torch.tensor([[0.9, 0.85, 0.1, -0.5], [0.1, 0.85, 0.9, -0.9]], dtype=torch.float64, requires_grad=True)
    first = torch.tensor([[True, False, False, False], [True, False, False, False]])
    soft_top_k_loss(scores, first, k=2).backward()
    assert scores.grad[0].abs().max() < 1e-5
    assert scores.grad[1, 0] < -1
    assert scores.grad[1, 1] > 1e3 * scores.grad[1, 3] >= 0
