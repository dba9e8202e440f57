"""SigLIP, SupCon, DCL and cMIM against plain loops over their equations, and where they meet InfoNCE or part.

Why: golden files hold one small batch without other positives, unlabelled queries or shared documents. The loops here
are the equations of the docstrings on batches that have everything.
"""

import math

import pytest
import torch
from contrastive_batch import Batch, few, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipelines.objectives.cmim import cmim_loss
from pipelines.objectives.dcl import dcl_loss, dclw_loss
from pipelines.objectives.decoupled_softmax import decoupled_softmax_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.siglip import siglip_loss
from pipelines.objectives.sup_con import sup_con_loss


@given(seeds)
@few
def test_siglip_is_binary_cross_entropy_of_every_pair_of_a_labelled_query(seed):
    b = Batch(seed)
    expected = 0.0
    for i in range(5):
        for n in range(9):
            z = 4.0 * float(b.q[i] @ b.d[n]) - 1.0
            if b.positive[i] >= 0:
                expected += math.log1p(math.exp(-z if b.relevant[i, n] else z))
    actual = siglip_loss(*b.embeddings, relevant=b.relevant, scale=4.0, bias=-1.0)
    assert actual.item() == pytest.approx(expected / int(b.labelled.sum()), rel=1e-10)


def test_siglips_negatives_far_below_the_threshold_still_count():
    """Torch's softplus is cut off above 20: a positive at -25 would lose the digits after its logit."""
    q, d = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[-25.0], [-25.0]], dtype=torch.float64)
    loss = siglip_loss(q, d, torch.tensor([0]), scale=1.0, bias=0.0)
    assert loss.item() == pytest.approx(25 + 2 * math.log1p(math.exp(-25)), rel=0, abs=1e-14)
    assert loss.item() > 25


@given(seeds)
@few
def test_sup_con_is_its_equations(seed):
    b = Batch(seed)
    logits = b.q @ b.d.T / 0.2

    def one_side(scores, positives):
        anchors = []
        for row, mine in zip(scores, positives, strict=True):
            if mine.any():
                anchors.append(-(row - row.logsumexp(0))[mine].mean())
        return torch.stack(anchors).mean()

    forward, backward = one_side(logits, b.relevant), one_side(logits.T, b.relevant.T)
    arguments = {"relevant": b.relevant, "temperature": 0.2}
    torch.testing.assert_close(sup_con_loss(*b.embeddings, **arguments), forward + backward)
    only = sup_con_loss(*b.embeddings, **arguments, directions=("document_to_query",))
    torch.testing.assert_close(only, backward)


@given(seeds)
@few
def test_with_one_positive_each_four_losses_are_one(seed):
    """SupCon and decoupled softmax generalise InfoNCE; they must agree where there is nothing to generalise."""
    b = Batch(seed)
    only = functional.one_hot(b.positive.clamp(min=0), 9).bool() & b.labelled.unsqueeze(1)
    plain = info_nce_loss(*b.embeddings, temperature=0.2)
    torch.testing.assert_close(sup_con_loss(*b.embeddings, temperature=0.2, directions=("query_to_document",)), plain)
    for form in ("decoupled", "softmax"):
        torch.testing.assert_close(decoupled_softmax_loss(b.q @ b.d.T, only, form=form, temperature=0.2), plain)


@given(seeds, st.booleans(), st.booleans(), st.sampled_from([None, 0.5]))
@few
def test_dcl_and_dclw_are_their_equations(seed, same_view, symmetric, sigma):
    b = Batch(seed)
    pairs = [(i, int(p)) for i, p in enumerate(b.positive) if p >= 0]
    weights = dict.fromkeys(pairs, 1.0)
    if sigma is not None:
        soft = torch.stack([b.q[i] @ b.d[p] / sigma for i, p in pairs]).softmax(0)
        weights = {pair: 2 - len(pairs) * float(share) for pair, share in zip(pairs, soft, strict=True)}
        assert sum(weights.values()) / len(pairs) == pytest.approx(1.0)
    total = 0.0
    for i, p in pairs:
        negatives = [b.q[i] @ b.d[n] for n in range(9) if not b.relevant[i, n]]
        asks_p = [j for j in range(5) if b.relevant[j, p]]
        if same_view:
            shares = {j for j in range(5) if j in asks_p or (b.positive[j] >= 0 and b.relevant[i, b.positive[j]])}
            negatives += [b.q[i] @ b.q[j] for j in range(5) if j != i and j not in shares]
        sides = [negatives]
        if symmetric:
            sides.append([b.q[j] @ b.d[p] for j in range(5) if j not in asks_p])
            if same_view:
                sides[1] += [b.d[p] @ b.d[n] for n in range(9) if not b.relevant[i, n]]
        for side in sides:
            if side:
                total += (torch.stack(side) / 0.1).logsumexp(0) - weights[i, p] * (b.q[i] @ b.d[p]) / 0.1
    arguments = {"relevant": b.relevant, "same_view_negatives": same_view, "symmetric": symmetric}
    if sigma is None:
        actual = dcl_loss(*b.embeddings, **arguments)
    else:
        actual = dclw_loss(*b.embeddings, **arguments, sigma=sigma)
    assert actual.item() == pytest.approx(float(total) / len(pairs), rel=1e-9)


def test_dcl_keeps_pulling_where_info_nces_gradient_has_gone():
    """Its reason to exist: a positive that already wins its softmax still moves, one against one."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    d = torch.tensor([[0.8, 0.6], [-1.0, 0.0]], dtype=torch.float64)
    won = torch.autograd.grad(info_nce_loss(q, d, torch.tensor([0]), temperature=0.1), q)[0].norm()
    still = torch.autograd.grad(dcl_loss(q, d, torch.tensor([0]), temperature=0.1), q)[0].norm()
    assert won < 1e-6
    assert still > 1


def test_dclws_weight_is_a_constant_only_when_asked():
    b = Batch(3)
    gradients = []
    for detach in (False, True):
        q = b.q.clone().requires_grad_()
        loss = dclw_loss(q, b.d, b.positive, detach_weight=detach)
        gradients.append(torch.autograd.grad(loss, q)[0])
    assert not torch.allclose(*gradients)
    assert torch.equal(dclw_loss(*b.embeddings, detach_weight=True), dclw_loss(*b.embeddings, detach_weight=False))


@given(seeds)
@few
def test_cmim_is_its_equation_and_does_not_grow_with_copies_of_the_negatives(seed):
    b = Batch(seed)
    scores = b.q @ b.d.T / 0.2
    rows = []
    for i, p in enumerate(b.positive):
        if p >= 0:
            mean = scores[i, ~b.relevant[i]].exp().mean()
            rows.append(-torch.log(scores[i, p].exp() / (scores[i, p].exp() + mean)))
    actual = cmim_loss(*b.embeddings, relevant=b.relevant, temperature=0.2)
    torch.testing.assert_close(actual, torch.stack(rows).mean())
    more = torch.cat([b.d, b.d, b.d])
    wide = torch.cat([b.relevant] * 3, dim=1)
    torch.testing.assert_close(cmim_loss(b.q, more, b.positive, relevant=wide, temperature=0.2), actual)
