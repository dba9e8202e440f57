"""Negatives made in embedding space: MoCHi and Metrix against plain loops, and what must never be drawn or mixed.

Why: the golden files fix the random choices. A job draws them, from lists with few safe negatives and with documents
that the teacher likes; a mixture closer to the query than its positive would teach the student to turn away from it.
"""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_batch import (
    DOCUMENTS,
    QUERIES,
    batch,
    close,
    cosine,
    drawn,
    mean,
    plainly_mixable,
    plainly_safe,
    seeds,
    several,
    taught,
    without_teacher,
)
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.metrix import metrix_loss
from pipelines.objectives.mixtures import Mixing, draw_mixing, hardest_negatives, mixtures_with_queries
from pipelines.objectives.mochi import mochi_loss


def plain_points(values, i, hard, mixing):
    """Mixtures of query i, from the formulas; the cap on its own share is found by bisection."""
    query, documents = values["query_embeddings"][i], values["document_embeddings"]
    positive = documents[values["positive_document"][i]]
    points = []
    for a, first, second in zip(mixing.first_share[i], mixing.first[i], mixing.second[i], strict=True):
        if first != second and max(first, second) < len(hard):
            n, m = documents[hard[first]], documents[hard[second]]
            point = a * n / n.norm() + (1 - a) * m / m.norm()
            points.append(point / point.norm() * (a * n.norm() + (1 - a) * m.norm()))
    for b, partner in zip(mixing.query_share[i], mixing.partner[i], strict=True):
        if partner < len(hard) and query @ documents[hard[partner]] < query @ positive:
            n = documents[hard[partner]]

            def point(share, n=n):
                mixed = share * query / query.norm() + (1 - share) * n / n.norm()
                return mixed / mixed.norm() * n.norm()

            low, high = 0.0, float(b)
            if query @ point(high) > query @ positive:
                for _ in range(60):
                    middle = (low + high) / 2
                    low, high = (middle, high) if query @ point(middle) <= query @ positive else (low, middle)
                points.append(point(low))
            else:
                points.append(point(high))
    return points


@several
@given(seeds, st.booleans(), st.sampled_from([None, 0.0, 1.0]), st.sampled_from([None, 0.5, 0.9]))
def test_mochi_is_info_nce_with_the_mixtures_as_further_negatives(seed, unit, margin, threshold):
    """Unit vectors and others, few safe negatives and many, caps that bite (a share of up to 0.9)."""
    values = batch(seed, unit=unit)
    mixing, _ = drawn(values, 4, lambda v, i: plainly_mixable(v, i, margin, threshold))
    losses = []
    for i in taught(values):
        query, documents = values["query_embeddings"][i], values["document_embeddings"]
        safe, mixable = plainly_safe(values, i, margin, threshold), plainly_mixable(values, i, margin, threshold)
        hard = sorted(mixable, key=lambda j: -float(query @ documents[j]))[:4]
        points = plain_points(values, i, hard, mixing)
        positive = values["positive_document"][i]
        others = torch.stack([query @ x for x in [*documents[[int(positive), *safe]], *points]]) / 0.2
        losses.append(others.logsumexp(0) - others[0])
    rules = {"teacher_margin": margin, "teacher_threshold": threshold}
    loss = mochi_loss(**values, mixing=mixing, temperature=0.2, hardest=4, **rules)
    torch.testing.assert_close(loss, mean(losses), rtol=1e-6, atol=1e-7)


@several
@given(seeds, st.booleans())
def test_a_mixture_with_the_query_is_never_closer_to_it_than_its_positive(seed, unit):
    generator = torch.Generator().manual_seed(seed)
    queries, positives = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    negatives = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    if unit:
        queries, positives, negatives = (functional.normalize(x, dim=-1) for x in (queries, positives, negatives))
    mixing = draw_mixing(torch.full((5,), 4), 0, 20, 1.0, generator=generator)
    scores = (queries * positives).sum(dim=1, keepdim=True)
    points, usable = mixtures_with_queries(queries, scores, negatives, mixing)
    reached = (points @ queries.unsqueeze(2)).squeeze(2)
    assert bool((reached <= scores + 1e-9)[usable].all())
    started = (negatives @ queries.unsqueeze(2)).squeeze(2).gather(1, mixing.partner)
    assert bool((reached >= started - 1e-9)[usable].all())
    assert torch.equal(usable, started < scores)


@several
@given(seeds, st.integers(2, 40))
def test_mixtures_are_drawn_from_what_is_available_and_of_two_different_negatives(seed, width):
    generator = torch.Generator().manual_seed(seed)
    available = torch.randint(0, width, (50,), generator=generator)
    mixing = draw_mixing(available, 30, 10, 0.5, generator)
    limit = available.clamp(min=1).unsqueeze(1)
    for positions in (mixing.first, mixing.second, mixing.partner):
        assert bool(((positions >= 0) & (positions < limit)).all())
    assert bool((mixing.first != mixing.second)[available > 1].all())
    assert bool(((mixing.first_share >= 0) & (mixing.first_share < 1)).all())
    assert bool(((mixing.query_share >= 0) & (mixing.query_share < 0.5)).all())


def test_every_negative_and_every_pair_of_them_is_drawn_about_equally_often():
    mixing = draw_mixing(torch.full((400,), 4), 100, 100, 0.5, torch.Generator().manual_seed(0))
    pairs = (mixing.first * 4 + mixing.second).flatten().bincount(minlength=16).reshape(4, 4)
    assert not bool(pairs.diagonal().any())
    assert bool((pairs[~torch.eye(4, dtype=torch.bool)] - 40_000 / 12).abs().max() < 250)
    assert bool((mixing.partner.flatten().bincount() - 10_000).abs().max() < 400)


def test_draws_repeat_with_their_generator_and_with_torchs_own_seed():
    available = torch.full((6,), 9)

    def same(left, right):
        return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(Mixing))

    once, again = (draw_mixing(available, 8, 4, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert same(once, again)
    torch.manual_seed(3)
    assert same(once, draw_mixing(available, 8, 4, 0.5))
    assert not same(once, draw_mixing(available, 8, 4, 0.5))


def test_mixtures_are_constants():
    """The gradient is that of the same points handed in as numbers."""
    values = without_teacher(batch(6))
    mixing, available = drawn(values, 4, lambda v, i: (~v["relevant"][i]).nonzero().squeeze(1).tolist())
    leaves = [values[n].clone().requires_grad_() for n in ("query_embeddings", "document_embeddings")]
    mochi_loss(*leaves, *list(values.values())[2:3], relevant=values["relevant"], mixing=mixing, hardest=4).backward()

    queries, documents = (values[n].clone().requires_grad_() for n in ("query_embeddings", "document_embeddings"))
    losses = []
    for i in taught(values):
        safe = (~values["relevant"][i]).nonzero().squeeze(1)
        order = hardest_negatives(queries[i : i + 1].detach() @ documents.detach().T, ~values["relevant"][i : i + 1], 4)
        points = plain_points(values, i, order[0, : available[i]].tolist(), mixing)
        chosen = torch.cat(
            [documents[values["positive_document"][i]].unsqueeze(0), documents[safe], torch.stack(points)]
        )
        logits = chosen @ queries[i] / 0.05
        losses.append(logits.logsumexp(0) - logits[0])
    mean(losses).backward()
    torch.testing.assert_close(leaves[0].grad, queries.grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(leaves[1].grad, documents.grad, rtol=1e-6, atol=1e-7)


def test_without_mixtures_mochi_is_info_nce():
    values = without_teacher(batch(7))
    close(mochi_loss(**values, negative_mixtures=0, query_mixtures=0), info_nce_loss(**values))


def test_a_query_without_a_safe_negative_adds_nothing_and_with_one_has_no_mixture_of_two():
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = mochi_loss(queries, documents, torch.tensor([0]), relevant=torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not bool(queries.grad.any())
    one = mochi_loss(queries, documents, torch.tensor([0]), query_mixtures=0, temperature=1.0)
    close(one, info_nce_loss(queries, documents, torch.tensor([0]), temperature=1.0))


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("hardest", 0),
        ("negative_mixtures", -1),
        ("query_mixtures", -1),
        ("max_query_share", 1.5),
        ("max_query_share", math.nan),
        ("temperature", 0.0),
    ],
)
def test_wrong_parameters_of_mochi_are_refused(parameter, value):
    with pytest.raises(ObjectiveError, match=rf"^mochi: {parameter} must be .*{value}"):
        mochi_loss(**batch(0), **{parameter: value})


@several
@given(seeds, st.integers(1, 30), st.sampled_from([None, 0.0]), st.sampled_from([None, 0.5, 0.9]))
def test_metrix_mixes_the_positive_with_the_hardest_safe_negatives(seed, hardest, margin, threshold):
    values = batch(seed, unit=False)
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(QUERIES, min(hardest, DOCUMENTS), generator=generator, dtype=torch.float64)
    queries, documents = functional.normalize(values["query_embeddings"], dim=1), values["document_embeddings"]
    near, far = [], []
    for i in taught(values):
        mixable = plainly_mixable(values, i, margin, threshold)
        hard = sorted(mixable, key=lambda j: -float(cosine(queries[i], documents[j])))[:hardest]
        for place, j in enumerate(hard):
            lam = share[i, place]
            mixed = lam * documents[values["positive_document"][i]] + (1 - lam) * documents[j]
            distance = (queries[i] - mixed / mixed.norm()).norm()
            near.append(lam * (distance - 0.1).relu())
            far.append((1 - lam) * (0.9 - distance).relu())
    expected = mean([t for t in near if t > 0]) + mean([t for t in far if t > 0])
    options = {"positive_margin": 0.1, "negative_margin": 0.9, "teacher_margin": margin, "teacher_threshold": threshold}
    close(metrix_loss(**values, mixing=share, hardest=hardest, **options), expected)


def test_metrix_draws_one_share_per_batch_or_one_per_pair():
    values = batch(8)

    def beta(*shape):
        torch.manual_seed(5)
        parameter = torch.full(shape, 2.0, dtype=torch.float64)
        return torch.distributions.Beta(parameter, parameter).sample()

    for draws, shape in (("batch", ()), ("pair", (QUERIES, 3))):
        expected = metrix_loss(**values, mixing=beta(*shape), hardest=3)
        torch.manual_seed(5)
        assert torch.equal(metrix_loss(**values, hardest=3, draws=draws), expected)


def test_a_mixture_on_top_of_its_query_has_no_gradient_instead_of_nan():
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    documents = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    metrix_loss(queries, documents, torch.tensor([0]), mixing=torch.tensor(0.5)).backward()
    assert bool(torch.isfinite(queries.grad).all())
    assert bool(torch.isfinite(documents.grad).all())


def test_metrix_without_a_safe_negative_is_zero():
    values = batch(9)
    values["query_embeddings"].requires_grad_()
    values["relevant"] = torch.ones_like(values["relevant"])
    loss = metrix_loss(**values)
    loss.backward()
    assert loss.item() == 0
    assert not bool(values["query_embeddings"].grad.any())


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("hardest", 0),
        ("positive_margin", -0.1),
        ("negative_margin", math.inf),
        ("concentration", 0.0),
        ("draws", "row"),
    ],
)
def test_wrong_parameters_of_metrix_are_refused(parameter, value):
    with pytest.raises(ObjectiveError, match=rf"^metrix: .*{parameter}.*{value}"):
        metrix_loss(**batch(0), **{parameter: value})
