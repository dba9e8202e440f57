"""Batches as jobs bring them, for the tests of objectives that make their own negatives, weights or targets.

Queries without a positive, documents that several queries share, teacher scores for some pairs only, known copies,
vectors that are not of unit length; and the words "safe" and "together" spelled out in plain Python.
"""

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn import functional

from pipelines.objectives.mixtures import draw_mixing

several = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)
QUERIES, DOCUMENTS, DIMENSIONS = 6, 11, 4


def batch(seed, *, unit=True):
    """Shared positives, a query without one, known copies, teacher scores here and there."""
    generator = torch.Generator().manual_seed(seed)

    def vectors(rows):
        drawn = torch.randn(rows, DIMENSIONS, generator=generator, dtype=torch.float64)
        return functional.normalize(drawn, dim=1) if unit else drawn * 2

    positive = torch.randint(0, 5, (QUERIES,), generator=generator)
    positive[1] = -1
    relevant = torch.rand(QUERIES, DOCUMENTS, generator=generator) < 0.15
    relevant[positive >= 0, positive[positive >= 0]] = True
    scored = torch.rand(QUERIES, DOCUMENTS, generator=generator) < 0.7
    teacher = torch.randn(QUERIES, DOCUMENTS, generator=generator, dtype=torch.float64) * 3
    return {
        "query_embeddings": vectors(QUERIES),
        "document_embeddings": vectors(DOCUMENTS),
        "positive_document": positive,
        "relevant": relevant,
        "batch_teacher_scores": teacher.masked_fill(~scored, math.nan),
        "scored": scored,
    }


def without_teacher(values):
    return {name: value for name, value in values.items() if name not in ("batch_teacher_scores", "scored")}


def taught(values):
    """Indices of the queries that have a positive."""
    return (values["positive_document"] >= 0).nonzero().squeeze(1).tolist()


def mean(terms):
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


def together(values, i, k):
    """Whether the positive of one query is known to be relevant to the other."""
    positive, relevant = values["positive_document"], values["relevant"]
    return bool(relevant[i, positive[k]] | relevant[k, positive[i]])


def plainly_safe(values, i, margin, threshold=None):
    """Columns that may be negatives of query i, by the words of the rule."""
    teacher, scored, positive = (values[n] for n in ("batch_teacher_scores", "scored", "positive_document"))
    columns = []
    for j in range(DOCUMENTS):
        judged = margin is not None and scored[i, j] and scored[i, positive[i]]
        called_relevant = judged and teacher[i, j] >= teacher[i, positive[i]] - margin
        probable = threshold is not None and scored[i, j] and torch.sigmoid(teacher[i, j]) >= threshold
        if not values["relevant"][i, j] and not called_relevant and not probable:
            columns.append(j)
    return columns


def plainly_mixable(values, i, margin, threshold=None):
    """Those of them that the teacher has seen: nobody knows about the others."""
    return [j for j in plainly_safe(values, i, margin, threshold) if values["scored"][i, j]]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def cosine(x, y):
    return x @ y / x.norm() / y.norm()


def drawn(values, hardest, mixable, sizes=(7, 5), share=0.9, seed=0):
    """Random choices from the columns that each taught query may mix."""
    counts = [len(mixable(values, i)) if i in taught(values) else 0 for i in range(QUERIES)]
    available = torch.tensor(counts).clamp(max=hardest)
    return draw_mixing(available, *sizes, share, generator=torch.Generator().manual_seed(seed)), available
