"""Ragged lists with ties on both sides, and the parts of ranking losses in plain Python: places, gains, soft ranks."""

import math

import pytest
import torch

TEMPERATURE = 0.3
seeds = pytest.mark.parametrize("seed", range(6))
grades_of_all_kinds = pytest.mark.parametrize("grades", ["teacher_rank", "as_given"])
top_k_rules = pytest.mark.parametrize(("top_k", "rule"), [(None, "either"), (2, "either"), (2, "both"), (99, "both")])


def lists(seed, *, queries=5, width=7, labels=False):
    """Ragged, shuffled padding, tied teachers and now and then tied students; a list of one and one of none."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randint(-20, 21, (queries, width), generator=generator).double() / 10
    low = 0 if labels else -3
    teacher = torch.randint(low, 5, (queries, width), generator=generator).double()
    mask = torch.rand(queries, width, generator=generator) < 0.8
    mask[0], mask[1] = False, False
    mask[1, 3] = True
    mask[2, :2] = True
    return student, teacher, mask


def real(student, teacher, mask):
    """Per query with a candidate: [(student score, teacher score), ...] in column order."""
    rows = [
        [(float(s), float(t)) for s, t, m in zip(*row, strict=True) if m]
        for row in zip(student, teacher, mask, strict=True)
    ]
    return [row for row in rows if row]


def places(scores):
    """1-based place of each score, best first, ties by column."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [order.index(i) + 1 for i in range(len(scores))]


def counts(place, other, top_k, rule):
    if top_k is None:
        return True
    inside = (place <= top_k, other <= top_k)
    return any(inside) if rule == "either" else all(inside)


def logistic(difference):
    return math.log1p(math.exp(-difference / TEMPERATURE))


def soft_rank(scores, i):
    return 1 + sum(1 / (1 + math.exp(-(s - scores[i]) / TEMPERATURE)) for j, s in enumerate(scores) if j != i)


def gains(labels, grades, top_k=None):
    gain = [2**y - 1 if grades == "as_given" else 1 / (1 + sum(z > y for z in labels)) for y in labels]
    ideal = sum(g / math.log2(1 + r) for r, g in enumerate(sorted(gain, reverse=True)[:top_k], 1))
    return [g / ideal if ideal else 0.0 for g in gain]


def assert_equal(loss, expected):
    assert loss.item() == pytest.approx(expected, rel=1e-11, abs=1e-13)
