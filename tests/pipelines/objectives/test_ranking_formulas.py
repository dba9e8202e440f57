"""Losses that learn from the teacher's order, against loops written from their formulas.

Why: golden files hold a few small inputs, without the options that are ours (teacher ranks as grades, a tie margin,
either of a pair in the top k). Loops over Python floats hold every option on ragged lists with ties on both sides.
"""

import math

import pytest
import torch
from plain_ranking import (
    TEMPERATURE,
    assert_equal,
    counts,
    gains,
    grades_of_all_kinds,
    lists,
    logistic,
    places,
    real,
    seeds,
    soft_rank,
    top_k_rules,
)

from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.approx_ndcg import approx_ndcg_loss
from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.grades import tied_ranks
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_mle import list_mle_loss, p_list_mle_loss
from pipelines.objectives.ranknet import ranknet_loss


@seeds
@top_k_rules
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_ranknet_is_its_formula(seed, top_k, rule, weighted, margin):
    student, teacher, mask = lists(seed)
    terms = []
    for row in real(student, teacher, mask):
        place = places([s for s, _ in row])
        for i, (s, t) in enumerate(row):
            for j, (s_other, t_other) in enumerate(row):
                if t > t_other + margin and counts(place[i], place[j], top_k, rule):
                    terms.append(logistic(s - s_other) * (t - t_other if weighted else 1))
    loss = ranknet_loss(
        student,
        teacher,
        mask,
        temperature=TEMPERATURE,
        tie_margin=margin,
        weight_by_difference=weighted,
        top_k=top_k,
        top_k_pairs=rule,
    )
    assert_equal(loss, sum(terms) / max(len(terms), 1))


def lambda_terms(row, weighting, grades, top_k, rule):
    """(weight, nats) of each pair of one list."""
    place = places([s for s, _ in row])
    gain = gains([t for _, t in row], grades, top_k)
    inverse = [1 / math.log2(1 + p) for p in place]
    if weighting == "ndcg_loss1" and len({t for _, t in row}) < 2:
        return
    for i, (s, t) in enumerate(row):
        for j, (s_other, t_other) in enumerate(row):
            if not counts(place[i], place[j], top_k, rule) or (t <= t_other and weighting != "ndcg_loss1"):
                continue
            apart = abs(place[i] - place[j])
            rho = abs(inverse[i] - inverse[j])
            delta = abs(1 / math.log2(1 + apart) - 1 / math.log2(2 + apart)) if apart else 0.0
            between = abs(gain[i] - gain[j])
            weight = {
                "none": 1.0,
                "ndcg_loss1": gain[i] * inverse[i],
                "ndcg_loss2": between * delta,
                "lambda_rank": between * rho,
                "ndcg_loss2pp": between * (rho + 7 * delta),
            }[weighting]
            yield weight, logistic(s - s_other)


@seeds
@top_k_rules
@grades_of_all_kinds
@pytest.mark.parametrize("weighting", ["none", "ndcg_loss1", "ndcg_loss2", "lambda_rank", "ndcg_loss2pp"])
def test_lambda_loss_is_its_formula(seed, top_k, rule, grades, weighting):
    student, teacher, mask = lists(seed, labels=grades == "as_given")
    rows = real(student, teacher, mask)
    terms = [term for row in rows for term in lambda_terms(row, weighting, grades, top_k, rule)]
    total = sum(weight * nats for weight, nats in terms)
    expected = {
        "sum": total,
        "mean_over_pairs": total / max(len(terms), 1),
        "sum_over_pairs_mean_over_queries": total / len(rows),
    }
    for reduction, value in expected.items():
        for base, unit in (("natural", 1.0), ("binary", math.log(2))):
            loss = lambda_loss(
                student,
                teacher,
                mask,
                temperature=TEMPERATURE,
                weighting=weighting,
                mu=7,
                grades=grades,
                top_k=top_k,
                top_k_pairs=rule,
                log_base=base,
                reduction=reduction,
            )
            assert_equal(loss, value / unit)


def draws(row):
    """Nats of each draw, in the teacher's order."""
    ranked = [s / TEMPERATURE for s, _ in sorted(row, key=lambda pair: -pair[1])]
    return [math.log(sum(math.exp(s) for s in ranked[j:])) - ranked[j] for j in range(len(ranked))]


@seeds
def test_list_mle_is_its_formula(seed):
    student, teacher, mask = lists(seed)
    rows = real(student, teacher, mask)
    loss = list_mle_loss(student, teacher, mask, temperature=TEMPERATURE)
    assert_equal(loss, sum(sum(draws(row)) for row in rows) / len(rows))


@seeds
@pytest.mark.parametrize(("weight_ranks", "first"), [("from_one", 1), ("from_zero", 0)])
def test_p_list_mle_is_its_formula(seed, weight_ranks, first):
    student, teacher, mask = lists(seed)
    rows = real(student, teacher, mask)
    expected = 0.0
    for row in rows:
        weights = [2 ** (len(row) - j) - 1 for j in range(first, first + len(row))]
        expected += sum(w * d for w, d in zip(weights, draws(row), strict=True)) / max(sum(weights), 1)
    loss = p_list_mle_loss(student, teacher, mask, temperature=TEMPERATURE, weight_ranks=weight_ranks)
    assert_equal(loss, expected / len(rows))


@seeds
def test_list_mle_is_cprd_with_every_candidate_valid(seed):
    """The relation that both docstrings state, gradient included."""
    student, teacher, mask = lists(seed)
    pair = [student.clone().requires_grad_() for _ in range(2)]
    ours = list_mle_loss(pair[0], teacher, mask)
    cprd = cprd_loss(pair[1], teacher, mask, reduction="sum_over_positions_mean_over_queries")
    for loss in (ours, cprd):
        loss.backward()
    assert_equal(ours, cprd.item())
    torch.testing.assert_close(pair[0].grad, pair[1].grad, rtol=1e-12, atol=1e-13)


@seeds
def test_adr_mse_is_its_formula(seed):
    """Tied candidates share the mean of their ranks."""
    student, teacher, mask = lists(seed)
    terms = []
    for row in real(student, teacher, mask):
        for i, (_, t) in enumerate(row):
            better, tied = sum(z > t for _, z in row), sum(z == t for _, z in row)
            rank = better + (tied + 1) / 2
            terms.append((rank - soft_rank([s for s, _ in row], i)) ** 2 / math.log2(1 + rank))
    assert_equal(adr_mse_loss(student, teacher, mask, temperature=TEMPERATURE), sum(terms) / len(terms))


@seeds
@grades_of_all_kinds
def test_approx_ndcg_is_its_formula(seed, grades):
    student, teacher, mask = lists(seed, labels=grades == "as_given")
    rows = real(student, teacher, mask)
    expected = 0.0
    for row in rows:
        if len({t for _, t in row}) > 1:
            gain = gains([t for _, t in row], grades)
            scores = [s for s, _ in row]
            expected += 1 - sum(g / math.log2(1 + soft_rank(scores, i)) for i, g in enumerate(gain))
    loss = approx_ndcg_loss(student, teacher, mask, temperature=TEMPERATURE, grades=grades)
    assert_equal(loss, expected / len(rows))


@seeds
def test_ranks_of_ties_are_the_places_of_their_group(seed):
    _, teacher, mask = lists(seed)
    ranks = tied_ranks(teacher, mask)
    for scores, listed, best, worst in zip(teacher, mask, ranks.best, ranks.worst, strict=True):
        for i in listed.nonzero().flatten():
            assert best[i] == 1 + int((scores[listed] > scores[i]).sum())
            assert worst[i] == int((scores[listed] >= scores[i]).sum())
