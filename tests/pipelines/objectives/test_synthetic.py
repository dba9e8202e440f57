"""Which pairs may be pushed apart or pulled together, and how much: filters and soft weights.

Why: golden files hold one square batch each. Here each loss is compared with a plain loop over its formula on batches
as jobs bring them, and held to what must never be pushed apart.
"""

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
    mean,
    seeds,
    several,
    taught,
    together,
    without_teacher,
)
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.cwcl import cwcl_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.iqr_filter import iqr_filter
from pipelines.objectives.uniformity_alignment import modality_gap, uniformity_alignment_loss
from pipelines.objectives.unpg import unpg_loss


def plain_cwcl(values, temperature, exponent, weights=None, teacher_temperature=1.0, weighting="sigmoid"):
    logits = values["query_embeddings"] @ values["document_embeddings"].T / temperature
    positive, relevant = values["positive_document"], values["relevant"]
    forward, backward = [], []
    for i in taught(values):
        row = torch.zeros(DOCUMENTS, dtype=torch.float64)
        teacher = values["batch_teacher_scores"][i] / teacher_temperature
        whole = teacher[values["scored"][i]].exp().sum()
        for j in range(DOCUMENTS):
            if relevant[i, j]:
                row[j] = 1
            elif values["scored"][i, j]:
                row[j] = torch.sigmoid(teacher[j]) if weighting == "sigmoid" else teacher[j].exp() / whole
        row = (row if weights is None else weights[i]) ** exponent
        forward.append(-(row / row.sum() * logits[i].log_softmax(0)).sum())
        rivals = [k for k in taught(values) if k == i or not relevant[k, positive[i]]]
        backward.append(logits[rivals, positive[i]].logsumexp(0) - logits[i, positive[i]])
    return mean(forward) + mean(backward)


@several
@given(seeds, st.sampled_from([1.0, 3.0]), st.booleans())
def test_cwcl_is_the_plain_sum_of_its_two_directions(seed, exponent, own_weights):
    values = batch(seed)
    weights = (
        torch.rand(QUERIES, DOCUMENTS, generator=torch.Generator().manual_seed(seed)).double() if own_weights else None
    )
    loss = cwcl_loss(**values, weights=weights, temperature=0.3, weight_exponent=exponent)
    close(loss, plain_cwcl(values, 0.3, exponent, weights))


@several
@given(seeds, st.sampled_from([0.5, 4.0]), st.sampled_from(["sigmoid", "softmax"]))
def test_cwcl_weighs_by_the_teachers_sigmoid_or_softmax(seed, temperature, weighting):
    values = batch(seed)
    values["scored"][4] = False  # a list that nobody scored: only what is relevant is left
    options = {"teacher_temperature": temperature, "weighting": weighting}
    close(cwcl_loss(**values, temperature=0.3, **options), plain_cwcl(values, 0.3, 1.0, **options))


def test_only_softmax_weights_forget_a_number_added_to_a_querys_logits():
    """A teacher trained listwise is the same teacher after that; its sigmoid is not."""
    values = batch(4)
    moved = values | {"batch_teacher_scores": values["batch_teacher_scores"] + torch.arange(QUERIES).unsqueeze(1)}
    for weighting, same in (("softmax", True), ("sigmoid", False)):
        before, after = (cwcl_loss(**v, weighting=weighting) for v in (values, moved))
        assert torch.allclose(before, after, rtol=1e-9) is same


def test_a_query_without_a_positive_takes_no_part_in_either_direction_of_cwcl():
    values = batch(2)
    values["query_embeddings"].requires_grad_()
    cwcl_loss(**values).backward()
    gradient = values["query_embeddings"].grad
    assert not bool(gradient[1].any())
    assert bool(gradient[0].any())


def test_one_query_has_no_other_direction_in_cwcl():
    values = {n: v if n == "document_embeddings" else v[:1] for n, v in batch(3).items()}
    values["relevant"] = None
    values["scored"] = torch.zeros_like(values["scored"])
    no_teacher = without_teacher(values) | {"relevant": None}
    close(cwcl_loss(**values), info_nce_loss(**no_teacher))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weights": torch.zeros(QUERIES, DOCUMENTS)}, r"5 row\(s\) sum to 0"),
        ({"weights": -torch.ones(QUERIES, DOCUMENTS)}, "smallest is -1"),
        ({"weights": torch.ones(QUERIES, 2)}, "weights must be floating of shape"),
        ({"weights": torch.full((QUERIES, DOCUMENTS), math.nan)}, "weights has .* NaN"),
        ({"weight_exponent": 0.0}, "weight_exponent must be .* 0.0"),
        ({"temperature": -1.0}, "temperature must be .* -1.0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be .* 0.0"),
        ({"weighting": "linear"}, "unknown weighting 'linear'"),
    ],
)
def test_wrong_weights_and_parameters_of_cwcl_are_refused(change, complaint):
    with pytest.raises(ObjectiveError, match=rf"^cwcl: .*{complaint}"):
        cwcl_loss(**(batch(0) | change))


def plain_uniformity(values, sharpness):
    """Alignment, uniformity of both sides, cross uniformity, by loops over pairs that do not belong together."""
    rows = taught(values)
    left = functional.normalize(values["query_embeddings"], dim=1)
    right = functional.normalize(values["document_embeddings"], dim=1)[values["positive_document"]]
    pairs = [(i, k) for i in rows for k in rows if i != k and not together(values, i, k)]

    def spread(x, y):
        kernels = [torch.exp(-sharpness * (x[i] - y[k]).square().sum()) for i, k in pairs]
        return torch.stack(kernels).mean().log() if kernels else torch.zeros((), dtype=torch.float64)

    aligned = mean([(left[i] - right[i]).square().sum() for i in rows])
    return aligned, (spread(left, left) + spread(right, right)) / 2, spread(left, right)


@several
@given(seeds, st.booleans(), st.sampled_from([2.0, 0.5]))
def test_uniformity_and_alignment_leave_out_what_belongs_together(seed, unit, sharpness):
    values = without_teacher(batch(seed, unit=unit))
    aligned, spread, crossed = plain_uniformity(values, sharpness)
    loss = uniformity_alignment_loss(
        **values, alignment_weight=0.7, uniformity_weight=0.4, cross_weight=0.2, sharpness=sharpness
    )
    close(loss, 0.7 * aligned + 0.4 * spread + 0.2 * crossed)


def test_relevant_documents_are_never_repelled():
    """When every positive is relevant to every query, only alignment is left."""
    values = without_teacher(batch(4))
    values["relevant"] = torch.ones_like(values["relevant"])
    loss = uniformity_alignment_loss(**values)
    close(loss, uniformity_alignment_loss(**values, uniformity_weight=0.0, cross_weight=0.0))
    assert loss > 0


def test_alignment_pulls_a_pair_together_and_uniformity_pushes_strangers_apart():
    documents = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    only = dict.fromkeys(("alignment_weight", "uniformity_weight", "cross_weight"), 0.0)

    def nearer(kind, measured):
        queries = torch.tensor([[1.0, 0.0], [0.8, 0.6]], requires_grad=True)
        uniformity_alignment_loss(queries, documents, torch.tensor([0, 1]), **(only | {kind: 1.0})).backward()
        moved = functional.normalize(queries.detach() - 0.1 * queries.grad, dim=1)
        return measured(moved) > measured(queries.detach())

    assert nearer("alignment_weight", lambda q: q[0] @ documents[0])
    assert not nearer("uniformity_weight", lambda q: q[0] @ q[1])
    assert not nearer("cross_weight", lambda q: q[0] @ documents[1])


def test_the_modality_gap_is_the_distance_of_the_two_means_and_training_closes_it():
    """Two towers that start on opposite sides of the sphere; what the docstring tells to look at must move."""
    queries = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    documents = torch.tensor([[-0.6, 0.8], [-1.0, 0.0], [-0.8, -0.6]])
    assert float(modality_gap(queries, documents)) == pytest.approx(math.hypot(0.8 + 0.8, 0.4 - 0.2 / 3))
    assert float(modality_gap(queries, queries)) == 0

    generator = torch.Generator().manual_seed(3)
    away = torch.tensor([3.0, 0.0, 0.0, 0.0])
    towers = [torch.randn(6, 4, generator=generator) + side for side in (away, -away)]
    towers = [functional.normalize(tower, dim=1).requires_grad_() for tower in towers]
    before = modality_gap(*(tower.detach() for tower in towers))
    optimizer = torch.optim.SGD(towers, lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        uniformity_alignment_loss(*towers, torch.arange(6)).backward()
        optimizer.step()
    after = modality_gap(*(functional.normalize(tower.detach(), dim=1) for tower in towers))
    assert float(before) > 1.5
    assert float(after) < 0.5


@pytest.mark.parametrize("parameter", ["alignment_weight", "uniformity_weight", "cross_weight", "sharpness"])
def test_wrong_parameters_of_uniformity_and_alignment_are_refused(parameter):
    with pytest.raises(ObjectiveError, match=rf"^uniformity_alignment: {parameter} must be .* -1.0"):
        uniformity_alignment_loss(**without_teacher(batch(0)), **{parameter: -1.0})


@several
@given(seeds, st.integers(1, 30), st.sampled_from([0.0, 0.3, 1.5]))
def test_the_filter_keeps_what_is_within_the_whiskers_of_each_list(seed, width, whisker):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, width, generator=generator) < 0.7
    kept = iqr_filter(values.masked_fill(~mask, math.nan), whisker, mask)
    for i in range(4):
        listed = values[i][mask[i]].tolist()
        ranked = sorted(listed)
        for j in range(width):
            if not mask[i, j]:
                assert not kept[i, j]
                continue
            lower, upper = ranked[int(0.25 * len(ranked))], ranked[int(0.75 * len(ranked))]
            reach = whisker * (upper - lower)
            assert bool(kept[i, j]) == (lower - reach <= float(values[i, j]) <= upper + reach)


def test_the_filter_cuts_both_tails_and_spares_ties():
    values = torch.tensor([-50.0, 1.0, 2.0, 3.0, 4.0, 5.0, 90.0])
    assert iqr_filter(values, 1.5).tolist() == [False, True, True, True, True, True, False]
    assert bool(iqr_filter(torch.full((5,), 2.0), 0.0).all())
    assert iqr_filter(torch.zeros(0), 1.5).tolist() == []


@pytest.mark.parametrize(
    ("values", "whisker", "complaint"),
    [
        (torch.zeros(3), -1.0, "whisker must be .* -1.0"),
        (torch.zeros(3), math.nan, "whisker must be .* nan"),
        (torch.tensor([0.0, math.nan]), 1.0, "values has 1 NaN"),
    ],
)
def test_the_filter_refuses_what_it_cannot_rank(values, whisker, complaint):
    with pytest.raises(ObjectiveError, match=rf"^iqr_filter: {complaint}"):
        iqr_filter(values, whisker)


@several
@given(seeds, st.sampled_from([0.0, 0.3, 1.5]), st.booleans())
def test_unpg_is_one_softmax_over_own_documents_and_the_kept_pairs(seed, whisker, unit):
    values = without_teacher(batch(seed, unit=unit))
    queries = functional.normalize(values["query_embeddings"], dim=1)
    cosines = queries @ functional.normalize(values["document_embeddings"], dim=1).T
    rows = taught(values)
    pairs = [queries[i] @ queries[k] for i in rows for k in rows if i < k and not together(values, i, k)]
    pairs = torch.stack(pairs) if pairs else torch.zeros(0, dtype=torch.float64)
    shared = pairs[iqr_filter(pairs, whisker)]
    losses = []
    for i in rows:
        target = cosines[i, values["positive_document"][i]] - 0.2
        logits = 10 * torch.cat([target.reshape(1), cosines[i][~values["relevant"][i]], shared])
        losses.append(logits.logsumexp(0) - logits[0])
    close(unpg_loss(**values, scale=10.0, margin=0.2, whisker=whisker), mean(losses))


def test_unpg_of_one_query_without_margin_is_info_nce_on_cosines():
    values = {n: v if n == "document_embeddings" else v[:1] for n, v in without_teacher(batch(10)).items()}
    close(unpg_loss(**values, scale=20.0, margin=0.0), info_nce_loss(**values, temperature=0.05))


def test_queries_about_the_same_document_are_not_pushed_apart_by_unpg():
    values = without_teacher(batch(11))
    values["positive_document"] = torch.zeros(QUERIES, dtype=torch.int64)
    values["relevant"] = None
    alone = [
        unpg_loss(
            **{n: v[i : i + 1] if n in ("query_embeddings", "positive_document") else v for n, v in values.items()}
        )
        for i in range(QUERIES)
    ]
    close(unpg_loss(**values), mean(alone))


@pytest.mark.parametrize(("parameter", "value"), [("scale", 0.0), ("margin", -0.1), ("whisker", math.inf)])
def test_wrong_parameters_of_unpg_are_refused(parameter, value):
    with pytest.raises(ObjectiveError, match=rf"^unpg: {parameter} must be .*{value}"):
        unpg_loss(**without_teacher(batch(0)), **{parameter: value})
