"""The tensors of a step by the names that objectives ask for (`pipelines.objectives.registry.TENSORS`).

Enters: embeddings of a batch's queries and distinct documents, and the `ListBatch` they belong to. Leaves: a mapping
from name to tensor. List tensors are [Q, K]; batch tensors are [Q, N], every query against every document. Documents of
a momentum queue, if there are any, follow the batch's own: N grows, no list knows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.objective_terms import View
from pipelines.student.heads import StudentViews
from pipelines.training.batches import ListBatch

__all__ = ["Queued", "list_scores", "step_tensors"]


@dataclass(frozen=True, eq=False)
class Queued:
    """M documents of earlier batches, constants.

    Attributes:
        views: their vectors, [M, D] as each head sees them.
        relevant: [Q, M] bool, which of them are known to be relevant to a query.
    """

    views: StudentViews
    relevant: Tensor


def step_tensors(
    batch: ListBatch,
    queries: Tensor,
    documents: Tensor,
    *,
    queued: Queued | None = None,
    view: View = "served",
) -> dict[str, Tensor]:
    """All tensors of the vocabulary but those of a previous student.

    Args:
        batch: Q lists of up to K candidates over N distinct documents.
        queries: [Q, D] on the device to compute on.
        documents: [N, D] on the same.
        queued: further documents.
        view: which of their vectors.
    """
    device = queries.device
    relevant = batch.relevant.to(device)
    if queued is not None:
        documents = torch.cat([documents, getattr(queued.views, view).to(documents.dtype)])
        relevant = torch.cat([relevant, queued.relevant.to(device)], dim=1)
    columns, mask, positive = batch.columns.to(device), batch.mask.to(device), batch.positive.to(device)
    teacher_logits = batch.teacher_logits.to(device)
    batch_scores = queries @ documents.T
    scored = torch.zeros_like(batch_scores, dtype=torch.bool)
    rows, places = mask.nonzero(as_tuple=True)
    scored[rows, columns[rows, places]] = True
    batch_teacher_scores = torch.zeros(batch_scores.shape, dtype=teacher_logits.dtype, device=device)
    batch_teacher_scores[rows, columns[rows, places]] = teacher_logits[rows, places]
    document = columns.gather(1, positive.clamp(min=0).unsqueeze(1)).squeeze(1)
    return {
        "student_scores": batch_scores.gather(1, columns),
        "teacher_scores": teacher_logits,
        "mask": mask,
        "positive": positive,
        "positives": batch.judged_positive.to(device),
        "columns": columns,
        "query_embeddings": queries,
        "document_embeddings": documents,
        "positive_document": torch.where(positive >= 0, document, -1),
        "relevant": relevant,
        "same_query": _same(batch.query_texts).to(device),
        "batch_scores": batch_scores,
        "batch_teacher_scores": batch_teacher_scores,
        "scored": scored,
    }


def _same(texts: Sequence[str]) -> Tensor:
    """[n, n] bool, True where two texts are equal."""
    place = torch.tensor([texts.index(text) for text in texts])
    return place.unsqueeze(0) == place.unsqueeze(1)


def list_scores(batch: ListBatch, queries: Tensor, documents: Tensor) -> Tensor:
    """[Q, K] similarities of each query with its own candidates; whatever stands at padding is to be masked."""
    return (queries @ documents.T).gather(1, batch.columns.to(queries.device))
