"""Ragged lists with and without a positive, and the formulas' parts in plain Python, for tests of list objectives."""

import math

import pytest
import torch

POSITIVE = torch.tensor([1, 0, -1, 2, 0])
"""Of the five ragged lists: the third query has none, the fourth list holds its positive in the last real column."""
LENGTHS = (6, 4, 5, 3, 1)


def ragged(seed=0, dtype=torch.float64):
    """Student (a leaf), teacher and mask of five lists of six columns."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(5, 6, generator=generator, dtype=dtype).requires_grad_()
    teacher = torch.randn(5, 6, generator=generator, dtype=dtype) * 3
    mask = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)
    return student, teacher, mask


def rows(student, teacher, mask):
    """Python lists of the real candidates of each query."""
    return [
        (s[m].tolist(), t[m].tolist(), int(p))
        for s, t, m, p in zip(student.detach(), teacher, mask, POSITIVE, strict=True)
    ]


def softmax(values):
    highest = max(values)
    weights = [math.exp(v - highest) for v in values]
    return [w / sum(weights) for w in weights]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def coin(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def close(loss, expected):
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
