"""Batches that two workers hold, and the same as one process would hold them: from texts alone.

Ragged, with hard negatives, a document on both workers, a query without a positive, a query text on both workers with
different positives, and a worker that holds nothing. Embeddings and teacher scores follow from the texts, so equal
texts have equal ones wherever they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.objectives.gather import NO_DOCUMENT, text_keys

WORKERS = 2
FEATURES, DIMENSIONS = 6, 4
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


@dataclass
class Part:
    """What one worker holds, before the student."""

    queries: list[str]
    documents: list[str]
    positive: list[int]
    """Of each query, the row of its positive; -1 = none."""
    also: list[set[str]]
    """Texts known to be relevant to each query beside its positive, wherever they are."""

    @property
    def known(self) -> list[set[str]]:
        """All texts known to be relevant to each query."""
        return [
            others | ({self.documents[p]} if p >= 0 else set())
            for p, others in zip(self.positive, self.also, strict=True)
        ]

    @property
    def lists(self) -> list[list[int]]:
        """Of each query, the documents of its list: its positive and every second other one."""
        return [
            [p for p in [place] if p >= 0] + [n for n in range(len(self.documents)) if n != place and (n + row) % 2]
            for row, place in enumerate(self.positive)
        ]

    @property
    def relevant_keys(self) -> Tensor:
        width = max((len(texts) for texts in self.known), default=0)
        keys = torch.full((len(self.known), width), NO_DOCUMENT)
        for row, texts in enumerate(self.known):
            keys[row, : len(texts)] = text_keys(sorted(texts))
        return keys


BATCHES = {
    # "b" is on both workers: a positive on the first, a hard negative on the second. "e" is known to be relevant to the
    # first worker's second query, and only the second worker drew it. "who" is asked on both, with different answers.
    "ragged": [
        Part(
            ["who", "what", "where"],
            ["a", "hard1", "b", "hard2", "c", "hard3", "hard4"],
            [0, 2, 4],
            [set(), {"e"}, set()],
        ),
        Part(["when", "who", "why"], ["hard5", "d", "b", "e", "f"], [1, 3, 4], [set(), set(), {"hard5"}]),
    ],
    "unequal": [
        Part(["who", "what", "where"], ["a", "b", "c", "hard1"], [0, 1, 2], [set(), set(), set()]),
        Part(["when", "how"], ["hard2", "d"], [-1, 1], [set(), set()]),
    ],
    "one is empty": [
        Part(["who", "what"], ["a", "b", "hard1"], [0, 1], [set(), set()]),
        Part([], [], [], []),
    ],
}


def joined(parts: list[Part]) -> Part:
    """The concatenated batch; queries of equal text share what is relevant, as a job's batches have it."""
    queries = [text for part in parts for text in part.queries]
    starts = [sum(len(part.documents) for part in parts[:place]) for place in range(len(parts))]
    known = [texts for part in parts for texts in part.known]
    return Part(
        queries,
        [text for part in parts for text in part.documents],
        [p + start if p >= 0 else -1 for part, start in zip(parts, starts, strict=True) for p in part.positive],
        [set().union(*[k for q, k in zip(queries, known, strict=True) if q == text]) for text in queries],
    )


def weights() -> Tensor:
    """The student: features to embeddings."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(FEATURES, DIMENSIONS, generator=generator, dtype=torch.float64).requires_grad_()


def student(texts: list[str], model: Tensor) -> Tensor:
    features = [
        torch.randn(FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in text_keys(texts).remainder(2**31).tolist()
    ]
    return functional.normalize(torch.stack(features) @ model if texts else model[:0], dim=1)


def tensors_of(parts: list[Part], model: Tensor) -> dict[str, Tensor]:
    """A step's tensors, all of the vocabulary, of these workers' texts; the lists are those of each worker."""
    whole = joined(parts)
    queries, documents = student(whole.queries, model), student(whole.documents, model)
    shape = (len(whole.queries), len(whole.documents))
    starts = [sum(len(part.documents) for part in parts[:place]) for place in range(len(parts))]
    lists = [[n + start for n in row] for part, start in zip(parts, starts, strict=True) for row in part.lists]
    widest = max((len(row) for row in lists), default=0)
    columns = torch.zeros(shape[0], widest, dtype=torch.int64)
    mask = torch.zeros(shape[0], widest, dtype=torch.bool)
    scored = torch.zeros(shape, dtype=torch.bool)
    for row, places in enumerate(lists):
        columns[row, : len(places)] = torch.tensor(places, dtype=torch.int64)
        mask[row, : len(places)] = True
        scored[row, places] = True
    teacher = 3 * student(whole.queries, 1 - weights().detach()) @ student(whole.documents, weights().detach()).T
    positive = torch.tensor(whole.positive, dtype=torch.int64)
    relevant = [[text in row for text in whole.documents] for row in whole.known]
    batch_scores = queries @ documents.T
    return {
        "query_embeddings": queries,
        "document_embeddings": documents,
        "previous_query_embeddings": student(whole.queries, -weights().detach()),
        "previous_document_embeddings": student(whole.documents, 2 - weights().detach()),
        "positive_document": positive,
        "relevant": torch.tensor(relevant, dtype=torch.bool).reshape(shape),
        "same_query": torch.tensor([[a == b for a in whole.queries] for b in whole.queries]).reshape(shape[:1] * 2) > 0,
        "batch_scores": batch_scores,
        "batch_teacher_scores": teacher.masked_fill(~scored, 0),
        "scored": scored,
        "columns": columns,
        "mask": mask,
        "student_scores": batch_scores.gather(1, columns),
        "teacher_scores": teacher.gather(1, columns).masked_fill(~mask, 0),
        "positive": torch.where(positive >= 0, 0, -1),
        "positives": (positive >= 0).unsqueeze(1) & (torch.arange(widest) == 0),
    }
