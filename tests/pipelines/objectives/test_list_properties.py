"""What must hold for every list a batch may bring, ragged, tied or unlabelled: random sizes, no golden numbers.

Why: golden files fix a formula at a few points. Batching relies on symmetries: what is padding, in which order
candidates come, how much one query weighs beside the others. Each loss is held to those that it has; the tests say
which ones lack one, and why.
"""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from list_losses import LOSSES, close, draw, losses, rows, value_and_gradient, without

some = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 5), st.integers(2, 9))

ORDER_ONLY = (
    "ranknet",
    "ranknet top 2",
    "list_mle",
    "p_list_mle",
    "lambda_loss",
    "lambda_loss over pairs",
    "lambda_loss ndcg_loss1",
    "adr_mse",
    "approx_ndcg",
)


@losses(*ORDER_ONLY)
@some
@given(seed=seeds, size=sizes, steps=st.lists(st.floats(0.01, 50), min_size=9, max_size=9))
def test_any_increasing_map_of_the_teachers_scores_changes_no_bit(name, seed, size, steps):
    values = draw(seed, size)
    increasing = torch.tensor(steps, dtype=torch.float64).cumsum(0) - 100
    mapped = values | {"teacher": increasing[(values["teacher"] + 4).long()]}
    for before, after in zip(value_and_gradient(name, values), value_and_gradient(name, mapped), strict=True):
        assert torch.equal(before, after)


@losses(*ORDER_ONLY, "ranknet weighted", "list_net", "m3_kd", "ar2", "rocketqa_v2", "rocketqa_v2 code")
@some
@given(seed=seeds, size=sizes)
def test_a_number_added_to_a_querys_teacher_scores_changes_nothing(name, seed, size):
    """Teachers trained listwise have no zero. The binary losses need one, and say so."""
    values = draw(seed, size)
    moved = values | {"teacher": values["teacher"] + 3 * torch.arange(size[0]).unsqueeze(1)}
    for before, after in zip(value_and_gradient(name, values), value_and_gradient(name, moved), strict=True):
        close(after, before)


@losses(*without("binary_kl", "binary_kl_norm", "mw", "mw over pairs"))
@some
@given(seed=seeds, size=sizes)
def test_a_number_added_to_a_querys_student_scores_changes_nothing(name, seed, size):
    """An offset per query ranks nothing. The binary losses and MW are there to see it."""
    values = draw(seed, size)
    offset = torch.arange(size[0]).unsqueeze(1) * 1.5 - 2
    moved = values | {side: values[side] + offset for side in ("student", "others")}
    for before, after in zip(value_and_gradient(name, values), value_and_gradient(name, moved), strict=True):
        close(after, before)


@losses("mw", "mw over pairs")
@some
@given(seed=seeds, size=sizes)
def test_only_a_number_added_to_all_scores_alike_is_nothing_to_mw(name, seed, size):
    values = draw(seed, size)
    alike = values | {side: values[side] + 0.7 for side in ("student", "others")}
    close(LOSSES[name](alike), LOSSES[name](values))


@some
@given(seeds, sizes, st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5), st.floats(-10, 10))
def test_z_loss_knows_neither_a_querys_scale_nor_its_level(seed, size, factors, offset):
    values = draw(seed, size)
    factor = torch.tensor(factors[: size[0]], dtype=torch.float64).unsqueeze(1)
    moved = values | {"student": values["student"] * factor + offset}
    before, after = (value_and_gradient("z_loss", v) for v in (values, moved))
    torch.testing.assert_close(after[0], before[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(after[1] * factor, before[1], rtol=1e-6, atol=1e-7)


@losses(*LOSSES)
@some
@given(seed=seeds, size=sizes)
def test_padding_has_no_influence_whether_inside_a_list_or_behind_it(name, seed, size):
    values = draw(seed, size)
    mask = torch.cat([values["mask"], torch.zeros(size[0], 2, dtype=torch.bool)], dim=1)
    nonsense = torch.full((size[0], 2), math.nan, dtype=torch.float64)
    spoiled = {
        side: torch.cat([values[side], nonsense], dim=1).masked_fill(~mask, math.nan) for side in ("student", "teacher")
    }
    clean, dirty = value_and_gradient(name, values), value_and_gradient(name, values | spoiled | {"mask": mask})
    close(dirty[0], clean[0])
    close(dirty[1][:, :-2], clean[1])
    assert not bool(dirty[1][~mask].any())


BY_COLUMN_WHERE_TIED = ("list_mle", "p_list_mle", "lambda_loss", "lambda_loss ndcg_loss1", "ranknet top 2")
"""Ties of the teacher (draws of a likelihood) or of the student (places in its order) keep the order of the columns."""


@losses(*without("m3_kd"))  # it visits candidates in list order: earlier ones are masked for later ones
@some
@given(seed=seeds, size=sizes)
def test_candidates_may_come_in_any_order(name, seed, size):
    values = draw(seed, size, untied=name in BY_COLUMN_WHERE_TIED)
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    mixed = values | {side: values[side][:, order] for side in ("student", "teacher", "mask")}
    mixed["positive"] = torch.where(values["positive"] >= 0, place[values["positive"].clamp(min=0)], -1)
    before, after = value_and_gradient(name, values), value_and_gradient(name, mixed)
    close(after[0], before[0])
    close(after[1], before[1][:, order])


def nonempty(values):
    return values["mask"].any(dim=1).double()


def candidates(values):
    return values["mask"].sum(dim=1).double()


def labelled(values):
    return (values["positive"] >= 0).double()


def ordered_pairs(values):
    """How many pairs of real candidates the teacher orders, by counting them."""
    lists = [t[m].tolist() for t, m in zip(values["teacher"], values["mask"], strict=True)]
    return torch.tensor([float(sum(a != b for a, b in combinations(one, 2))) for one in lists], dtype=torch.float64)


WEIGHT_OF_A_QUERY = {
    "ranknet": ordered_pairs,
    "ranknet weighted": ordered_pairs,
    "list_mle": nonempty,
    "p_list_mle": nonempty,
    "lambda_loss": nonempty,
    "lambda_loss over pairs": ordered_pairs,
    "lambda_loss ndcg_loss1": nonempty,
    "adr_mse": candidates,
    "approx_ndcg": nonempty,
    "list_net": nonempty,
    "binary_kl": nonempty,
    "binary_kl_norm": nonempty,
    "m3_kd": nonempty,
    "ar2": labelled,
    "z_loss": labelled,
}
"""What each mean runs over."""


@losses(*WEIGHT_OF_A_QUERY)
@some
@given(seed=seeds, size=sizes)
def test_a_batch_is_the_weighted_mean_of_its_queries_alone(name, seed, size):
    """Value and gradient: nobody leaks into another's list, nor weighs what the mean does not say."""
    values = draw(seed, size)
    weight = WEIGHT_OF_A_QUERY[name](values)
    share = weight / weight.sum().clamp(min=1)
    alone = [value_and_gradient(name, rows(values, slice(i, i + 1))) for i in range(size[0])]
    loss, gradient = value_and_gradient(name, values)
    close(loss, (share * torch.stack([value for value, _ in alone])).sum())
    close(gradient, share.unsqueeze(1) * torch.cat([own for _, own in alone]))


@pytest.mark.parametrize(("name", "weight"), [("rocketqa_v2", nonempty), ("rocketqa_v2 code", candidates)])
@some
@given(seed=seeds, size=sizes)
def test_rocketqa_v2_is_the_sum_of_two_means(name, weight, seed, size):
    """Its divergence is averaged over lists (paper) or candidates (code), its cross-entropy over positives."""
    values = draw(seed, size)
    unlabelled = values | {"positive": torch.full_like(values["positive"], -1)}

    def alone(v):
        return torch.stack([LOSSES[name](rows(v, slice(i, i + 1))) for i in range(size[0])])

    divergences = alone(unlabelled)
    cross_entropies = alone(values) - divergences
    expected = (divergences * weight(values)).sum() / weight(values).sum().clamp(min=1)
    expected = expected + (cross_entropies * labelled(values)).sum() / labelled(values).sum().clamp(min=1)
    close(LOSSES[name](values), expected)


@some
@given(seeds, sizes)
def test_a_batch_of_mw_follows_from_its_pairs_of_queries(seed, size):
    """Positives of each query meet negatives of each: blocks (i, j), of which single queries know (i, i) only."""
    values = draw(seed, size)

    def total(*chosen):
        part = rows(values, list(chosen))
        return LOSSES["mw"](part) * labelled(part).sum().clamp(min=1)

    everybody = range(size[0])
    singles = sum(total(i) for i in everybody)
    pairs = sum((total(i, k) for i, k in combinations(everybody, 2)), torch.zeros((), dtype=torch.float64))
    close(total(*everybody), pairs - (size[0] - 2) * singles)


@losses(*without("mw"))  # as the paper has it, it grows with the batch
@some
@given(seed=seeds, size=sizes, times=st.integers(2, 4))
def test_a_batch_several_times_over_costs_what_it_costs_once(name, seed, size, times):
    """So that losses, learning rates and weights of terms compare across batch sizes; one query is such a batch."""
    values = draw(seed, size)
    many = rows(values, torch.arange(size[0]).repeat(times))
    before, after = value_and_gradient(name, values), value_and_gradient(name, many)
    close(after[0], before[0])
    close(after[1].view(times, *size).sum(dim=0), before[1])


@losses("ar2", "z_loss", "mw", "mw over pairs")
@some
@given(seed=seeds, size=sizes)
def test_a_query_without_a_positive_learns_nothing_and_changes_nothing(name, seed, size):
    values = draw(seed, size)
    known = values["positive"] >= 0
    loss, gradient = value_and_gradient(name, values)
    assert not bool(gradient[~known].any())
    if bool(known.any()):
        close(loss, LOSSES[name](rows(values, known)))
    else:
        assert loss.item() == 0
