"""Batches with everything that golden files lack, for the tests of the contrastive group.

Shared and other positives, an unlabelled query, lists, a teacher: a mask that is off by one row still trains.
"""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn import functional

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


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
