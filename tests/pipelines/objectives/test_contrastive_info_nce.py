"""InfoNCE against a plain loop over its equations, whatever its options, and what each option is for.

Why: golden files hold one small batch without other positives, unlabelled queries or shared documents. Training batches
have all of them. The loop is the docstring's equations, term by term, on batches that have everything.
"""

import itertools
import math

import pytest
import torch
from contrastive_batch import Batch, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.siglip import siglip_loss

DIRECTIONS = ("query_to_document", "document_to_query", "query_to_query", "document_to_document")
SUBSETS = [("query_to_document", *rest) for n in range(4) for rest in itertools.combinations(DIRECTIONS[1:], n)]


def with_what_the_teacher_prefers(b, margin):
    relevant = b.relevant.clone()
    for i, n in itertools.product(range(5), range(9)):
        p = int(b.positive[i])
        if p >= 0 and b.scored[i, p] and b.scored[i, n] and b.teacher[i, n] >= b.teacher[i, p] - margin:
            relevant[i, n] = True
    return relevant


def candidates_by_loops(b, relevant, i, mode, strength):
    """Per direction the similarities in query i's denominator, and what hardness puts on top of each."""
    p = int(b.positive[i])
    found = {name: [] for name in DIRECTIONS}
    for n in range(9):
        own = bool(b.scored[i, n])
        if n == p or not relevant[i, n]:
            hard = {"none": False, "hard_negatives": own, "in_batch_negatives": not own, "all_negatives": True}[mode]
            similarity = float(b.q[i] @ b.d[n])
            found["query_to_document"].append((similarity, strength * similarity if hard and n != p else 0.0))
        if not relevant[i, n] and not own:
            found["document_to_document"].append((float(b.d[p] @ b.d[n]), 0.0))
    for j in range(5):
        other = int(b.positive[j])
        if j == i or not relevant[j, p]:
            found["document_to_query"].append((float(b.q[j] @ b.d[p]), 0.0))
        if j != i and not relevant[j, p] and not (other >= 0 and relevant[i, other]):
            found["query_to_query"].append((float(b.q[i] @ b.q[j]), 0.0))
    return found


def info_nce_by_loops(b, temperature, directions, partition, smoothing, margin, mode, strength):
    relevant = b.relevant if margin is None else with_what_the_teacher_prefers(b, margin)
    losses = []
    for i in b.labelled.nonzero()[:, 0]:
        found = candidates_by_loops(b, relevant, i, mode, strength)
        sums = [[s / temperature + extra for s, extra in found[name]] for name in directions]
        target = float(b.q[i] @ b.d[b.positive[i]]) / temperature
        rows = []
        for logits in [list(itertools.chain(*sums))] if partition == "joint" else sums:
            smooth = (1 - smoothing) * target + smoothing * sum(logits) / max(len(logits), 1)
            rows.append(torch.tensor(logits, dtype=torch.float64).logsumexp(0).item() - smooth if logits else 0.0)
        losses.append(sum(rows) / len(rows))
    return sum(losses) / len(losses)


@given(
    seeds,
    st.sampled_from(SUBSETS),
    st.sampled_from(["joint", "per_direction"]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([None, 0.0, 2.0]),
    st.sampled_from([("none", 0.0), ("hard_negatives", 5.0), ("in_batch_negatives", 5.0), ("all_negatives", 2.0)]),
)
@settings(max_examples=120, deadline=None)
def test_info_nce_is_its_equations_whatever_the_options(seed, directions, partition, smoothing, margin, hardness):
    b = Batch(seed)
    mode, strength = hardness
    actual = info_nce_loss(
        *b.embeddings,
        relevant=b.relevant,
        batch_teacher_scores=b.teacher.masked_fill(~b.scored, math.nan),
        scored=b.scored,
        temperature=0.2,
        directions=directions,
        partition=partition,
        label_smoothing=smoothing,
        teacher_margin=margin,
        hardness_mode=mode,
        hardness_strength=strength,
    )
    expected = info_nce_by_loops(b, 0.2, directions, partition, smoothing, margin, mode, strength)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_label_smoothing_is_torchs_where_nothing_is_left_out():
    b = Batch(0)
    positive = torch.tensor([0, 1, 2, 3, 4])
    expected = functional.cross_entropy(b.q @ b.d.T / 0.1, positive, label_smoothing=0.2)
    actual = info_nce_loss(b.q, b.d, positive, temperature=0.1, label_smoothing=0.2)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_query_that_shares_the_positive_is_no_negative_of_it():
    """Two queries, one document both ask for: in document_to_query each would push the other away."""
    queries, documents = torch.eye(2, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[2:]
    relevant = torch.tensor([[True, False], [True, False]])
    ways = {"directions": ("query_to_document", "document_to_query"), "partition": "per_direction", "temperature": 1.0}
    shared = info_nce_loss(queries, documents, torch.tensor([0, 0]), relevant=relevant, **ways)
    one_way = info_nce_loss(queries, documents, torch.tensor([0, 0]), relevant=relevant, temperature=1.0)
    assert shared.item() == pytest.approx(one_way.item() / 2)


@pytest.mark.parametrize("partition", ["joint", "per_direction"])
def test_a_lone_query_has_no_query_to_compete_with(partition):
    """An empty sum is no evidence: its logarithm, minus infinity, must not become the loss."""
    q = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    d = torch.randn(4, 3, dtype=torch.float64)
    alone = {"partition": partition, "temperature": 1.0}
    loss = info_nce_loss(q, d, torch.tensor([1]), directions=("query_to_document", "query_to_query"), **alone)
    loss.backward()
    plain = info_nce_loss(q, d, torch.tensor([1]), temperature=1.0)
    assert loss.item() == pytest.approx(plain.item() * (0.5 if partition == "per_direction" else 1))
    assert bool(torch.isfinite(q.grad).all())


def test_a_document_that_the_teacher_prefers_to_the_positive_is_no_negative():
    b = Batch(1)
    positive = torch.tensor([0, 1, 2, 3, 4])
    teacher = torch.full_like(b.teacher, -5.0)
    teacher[torch.arange(5), positive] = 4.0
    teacher[0, 7], teacher[1, 7], teacher[2, 7] = 4.0, 3.0, 2.9
    scored = torch.ones_like(b.scored)
    scored[3, 3] = False  # the teacher never saw this positive, so nothing can be compared with it
    teacher[3, 7] = 9.0
    relevant = torch.zeros_like(b.relevant)
    relevant[0, 7], relevant[1, 7] = True, True
    masked = info_nce_loss(
        b.q, b.d, positive, batch_teacher_scores=teacher, scored=scored, teacher_margin=1.0, temperature=0.1
    )
    flagged = info_nce_loss(b.q, b.d, positive, relevant=relevant, temperature=0.1)
    assert torch.equal(masked, flagged)
    assert not torch.equal(masked, info_nce_loss(b.q, b.d, positive, temperature=0.1))


def test_a_learned_temperature_and_a_learned_scale_and_bias_receive_their_gradient():
    b = Batch(2)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for directions in SUBSETS:
        assert torch.autograd.gradcheck(
            lambda t, ways=directions: info_nce_loss(*b.embeddings, temperature=t, directions=ways, scored=b.scored),
            (temperature,),
        )
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, c: siglip_loss(*b.embeddings, scale=s, bias=c), (scale, bias))


def test_hardness_is_a_constant_on_top_and_changes_whom_the_gradient_favours():
    """A harder negative must get a larger share of the softmax, with no gradient through the bonus itself."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    d = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    arguments = {"scored": torch.ones(1, 3, dtype=torch.bool), "temperature": 1.0}
    pulls = []
    for strength in (0.0, 3.0):
        loss = info_nce_loss(
            q, d, torch.tensor([0]), **arguments, hardness_mode="hard_negatives", hardness_strength=strength
        )
        (gradient,) = torch.autograd.grad(loss, d)
        assert gradient.sum(0).abs().max() < 1e-12  # shares of one softmax minus the target: no other path
        pulls.append(gradient[1, 0] / gradient[2, 0])
    assert pulls[1] > 2 * pulls[0]
