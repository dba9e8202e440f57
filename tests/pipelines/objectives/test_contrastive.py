"""The contrastive group against plain loops over its equations, and where its forms meet or part.

Why: golden files hold one small batch without other positives, unlabelled queries or shared documents. Training batches
have all of them, and a mask that is off by one row still trains. The loops here are the equations of the docstrings,
term by term, on batches that have everything.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objective_terms import InfoNCE, SupCon
from pipelines.objectives.cmim import cmim_loss
from pipelines.objectives.dcl import dcl_loss, dclw_loss
from pipelines.objectives.decoupled_softmax import decoupled_softmax_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.siglip import siglip_loss
from pipelines.objectives.soft_top_k import log_soft_top_k, soft_top_k_loss
from pipelines.objectives.sup_con import sup_con_loss

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
DIRECTIONS = ("query_to_document", "document_to_query", "query_to_query", "document_to_document")
SUBSETS = [("query_to_document", *rest) for n in range(4) for rest in itertools.combinations(DIRECTIONS[1:], n)]
EMBEDDING_LOSSES = [info_nce_loss, siglip_loss, sup_con_loss, dcl_loss, dclw_loss, cmim_loss]


class Batch:
    """Five queries, nine documents: shared and other positives, an unlabelled query, lists, a teacher."""

    def __init__(self, seed: int, queries: int = 5, documents: int = 9) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.q = functional.normalize(torch.randn(queries, 4, generator=generator, dtype=torch.float64), dim=1)
        self.d = functional.normalize(torch.randn(documents, 4, generator=generator, dtype=torch.float64), dim=1)
        self.positive = torch.randint(0, documents, (queries,), generator=generator)
        self.positive[-1] = -1
        self.positive[1] = self.positive[0]
        self.labelled = self.positive >= 0
        self.relevant = torch.rand(queries, documents, generator=generator) < 0.15
        self.relevant[self.labelled, self.positive[self.labelled]] = True
        self.scored = torch.rand(queries, documents, generator=generator) < 0.5
        self.scored[self.labelled, self.positive[self.labelled]] = True
        self.scored[2, self.positive[2]] = False
        self.teacher = torch.randn(queries, documents, generator=generator, dtype=torch.float64) * 3
        self.embeddings = (self.q, self.d, self.positive)


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


@pytest.mark.parametrize("loss", EMBEDDING_LOSSES)
def test_a_query_without_a_positive_is_left_out_of_the_mean(loss):
    """Counting it would shrink the loss of a half-labelled batch by half."""
    b = Batch(4)
    arguments = {"same_view_negatives": False} if "dcl" in loss.__name__ else {}
    if loss is sup_con_loss:
        arguments = {"directions": ("query_to_document",)}
    torch.testing.assert_close(
        loss(*b.embeddings, **arguments), loss(b.q[:-1], b.d, b.positive[:-1], **arguments), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("loss", [info_nce_loss, dcl_loss, dclw_loss, cmim_loss])
def test_a_query_with_no_negative_left_adds_nothing(loss):
    q = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    value = loss(q, torch.randn(4, 3, dtype=torch.float64), torch.tensor([2]), relevant=torch.ones(1, 4) > 0)
    value.backward()
    assert value.item() == 0
    assert not bool(q.grad.any())


@pytest.mark.parametrize("loss", EMBEDDING_LOSSES)
def test_no_other_relevant_document_is_pushed_away(loss):
    """The gradient of a descent step on a query's other positive is never away from the query."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    d = torch.tensor([[0.6, 0.8], [0.9, 0.436], [0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    relevant = torch.tensor([[True, True, False, False]])
    arguments = {} if loss is siglip_loss else {"temperature": 1.0}
    loss(q, d, torch.tensor([0]), relevant=relevant, **arguments).backward()
    assert float(d.grad[1] @ q[0]) <= 0
    assert float(d.grad[2] @ q[0]) > 0


def test_finite_embeddings_whose_sum_overflows_are_accepted():
    """The check for NaN looks at a sum first; an overflow there says nothing about the numbers."""
    large = torch.full((2, 4), 6e4, dtype=torch.float16)
    assert not bool(torch.isfinite(large.sum()))
    assert info_nce_loss(large, large, torch.tensor([0, 1])).item() == pytest.approx(math.log(2))


B = Batch(5)
FLAGS = torch.zeros(5, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce_loss(*B.embeddings, temperature=torch.tensor(0.0)), "temperature must be a positive"),
        (lambda: info_nce_loss(*B.embeddings, temperature=-1), "temperature must be a positive"),
        (lambda: info_nce_loss(*B.embeddings, directions=()), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, directions=("query_to_query",)), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, directions=("query_to_document",) * 2), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, directions=("query_to_document", "up")), "directions must be"),
        (lambda: info_nce_loss(*B.embeddings, partition="mean"), "unknown partition 'mean'"),
        (lambda: info_nce_loss(*B.embeddings, label_smoothing=1.0), r"label_smoothing must be in \[0, 1\), got 1.0"),
        (lambda: info_nce_loss(*B.embeddings, hardness_mode="easy"), "unknown hardness_mode 'easy'"),
        (lambda: info_nce_loss(*B.embeddings, hardness_mode="hard_negatives"), "needs scored"),
        (lambda: info_nce_loss(*B.embeddings, hardness_strength=2.0), "2.0 is without effect"),
        (lambda: info_nce_loss(*B.embeddings, hardness_strength=math.nan), "hardness_strength must be"),
        (lambda: info_nce_loss(*B.embeddings, teacher_margin=0.0), "teacher_margin needs batch_teacher_scores"),
        (
            lambda: info_nce_loss(*B.embeddings, teacher_margin=-1.0, batch_teacher_scores=B.teacher, scored=B.scored),
            "teacher_margin must be .* got -1.0",
        ),
        (
            lambda: info_nce_loss(
                *B.embeddings, teacher_margin=0.0, batch_teacher_scores=B.teacher * math.nan, scored=B.scored
            ),
            "batch_teacher_scores has",
        ),
        (lambda: info_nce_loss(*B.embeddings, scored=FLAGS[:, :3]), "scored must be bool"),
        (lambda: siglip_loss(*B.embeddings, scale=0.0), "scale must be a positive"),
        (lambda: siglip_loss(*B.embeddings, scale=torch.tensor(math.nan)), "scale must be a positive"),
        (lambda: siglip_loss(*B.embeddings, bias=math.inf), "bias must be a finite number, got inf"),
        (lambda: siglip_loss(*B.embeddings, bias=torch.tensor(math.nan)), "bias must be a finite"),
        (lambda: sup_con_loss(*B.embeddings, directions=()), "one or both"),
        (lambda: sup_con_loss(*B.embeddings, directions=("query_to_query",)), "one or both"),
        (lambda: sup_con_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: dcl_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: dclw_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: dclw_loss(*B.embeddings, sigma=0.0), "sigma"),
        (lambda: cmim_loss(*B.embeddings, temperature=0.0), "temperature"),
        (lambda: cmim_loss(B.q, B.d[:1], torch.zeros(5, dtype=torch.int64)), "fewer than 2 documents"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, form="soft"), "unknown form 'soft'"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, temperature=0.0), "temperature"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS.long()), "relevant must be bool"),
        (lambda: decoupled_softmax_loss(B.teacher[:, :1], FLAGS[:, :1]), "fewer than 2 documents"),
        (lambda: decoupled_softmax_loss(B.teacher.long(), FLAGS), "batch_scores must be a floating"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, relevance_weights=-B.teacher.abs()), "negative value"),
        (lambda: decoupled_softmax_loss(B.teacher, FLAGS, relevance_weights=FLAGS), "relevance_weights must be"),
        (
            lambda: decoupled_softmax_loss(B.teacher, FLAGS, relevance_weights=B.teacher.abs(), form="binary"),
            "'binary' has no weights",
        ),
        (lambda: soft_top_k_loss(B.teacher, FLAGS, k=0), "k must be a positive"),
        (lambda: soft_top_k_loss(B.teacher, FLAGS, alpha=0.0), "alpha must be a positive"),
        (lambda: soft_top_k_loss(B.teacher, FLAGS, iterations=0), "iterations must be a positive"),
        (lambda: soft_top_k_loss(B.teacher * math.nan, FLAGS), "batch_scores has 45 NaN"),
        (lambda: log_soft_top_k(B.teacher, torch.full((5,), 9), alpha=1.0, iterations=9), "k must be from 1 to 8"),
    ],
)
def test_what_would_give_a_wrong_loss_is_refused(call, message):
    with pytest.raises(ObjectiveError, match=message):
        call()


@pytest.mark.parametrize(
    "parameters",
    [
        {"directions": ["query_to_query"]},
        {"directions": ["query_to_document", "query_to_document"]},
        {"directions": ["query_to_document", "sideways"]},
        {"hardness_strength": 3.0},
        {"label_smoothing": 1.0},
        {"teacher_margin": -0.1},
        {"learn": ["label_smoothing"]},
    ],
)
def test_a_job_learns_at_once_that_its_info_nce_cannot_work(parameters):
    """At submission, not in the first training step."""
    with pytest.raises(ValidationError):
        InfoNCE(name="info_nce", **parameters)
    with pytest.raises(ValidationError):
        SupCon(name="sup_con", directions=[])
