"""What stands in the denominators of InfoNCE: per direction, what a query's positive pair competes with.

Enters: a checked batch and the pairs that are known to be relevant. Leaves: one `Partition` per direction, all with
one row per query, so that they can be one softmax or several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.objectives.embedding_batch import EmbeddingBatch, similarities
from pipelines.objectives.masked import zero_probability_logit

__all__ = ["Direction", "Partition", "cross_entropies", "direction_partition", "joined"]

Direction = Literal["query_to_document", "document_to_query", "query_to_query", "document_to_document"]


@dataclass(frozen=True)
class Partition:
    """Candidates of one softmax per query.

    Attributes:
        logits: [queries, candidates], of zero probability where `left_out`.
        left_out: [queries, candidates] bool.
        target: [queries] int64, candidate that is the positive pair, -1 = the query has none; None = the pair is not
            among the candidates of this direction.
    """

    logits: Tensor
    left_out: Tensor
    target: Tensor | None


def direction_partition(
    direction: Direction,
    batch: EmbeddingBatch,
    relevant: Tensor,
    own: Tensor | None,
    temperature: float | Tensor,
) -> Partition:
    """The candidates of one direction, without those that are no negatives.

    Args:
        direction: `query_to_document`: the query against all documents. `document_to_query`: its positive against all
            queries, itself among them. `query_to_query`: against the other queries. `document_to_document`: its
            positive against the documents of other queries.
        batch: embeddings and positives.
        relevant: [queries, documents] bool, pairs that are no negatives.
        own: [queries, documents] bool, the query's own list, which `document_to_document` leaves out; None = not known.
        temperature: divides the dot products.
    """
    rows = torch.arange(len(batch.queries), device=batch.positive.device)
    target: Tensor | None = None
    if direction in ("query_to_document", "query_to_query"):
        anchors = batch.queries / temperature
    else:
        anchors = batch.documents[batch.positive.clamp(min=0)] / temperature
    match direction:
        case "query_to_document":
            others, target = batch.documents, batch.positive
            left_out = relevant.scatter(1, batch.positive_column, False)
        case "document_to_query":
            others, target = batch.queries, torch.where(batch.has_positive, rows, -1)
            left_out = _shares_positive(batch, relevant).fill_diagonal_(False)
        case "query_to_query":
            others = batch.queries
            shares = _shares_positive(batch, relevant)
            left_out = (shares | shares.T).fill_diagonal_(True)
        case "document_to_document":
            others = batch.documents
            left_out = relevant if own is None else relevant | own
    logits = similarities(anchors, others)
    if bool(left_out.any()):  # often nothing is, and two passes over the largest tensor are saved
        logits = logits.masked_fill(left_out, zero_probability_logit(anchors.dtype))
    return Partition(logits, left_out, target)


def _shares_positive(batch: EmbeddingBatch, relevant: Tensor) -> Tensor:
    """[queries, queries] bool: is row i's positive relevant to query j as well?"""
    return relevant[:, batch.positive.clamp(min=0)].T & batch.has_positive.unsqueeze(1)


def joined(partitions: Sequence[Partition]) -> Partition:
    """One softmax over the candidates of all; the target is the first one's."""
    if len(partitions) == 1:
        return partitions[0]
    return Partition(
        torch.cat([part.logits for part in partitions], dim=1),
        torch.cat([part.left_out for part in partitions], dim=1),
        partitions[0].target,
    )


def cross_entropies(part: Partition, positive_logits: Tensor, label_smoothing: float) -> Tensor:
    """Log of the softmax's denominator minus the positive pair's logit; 0 where there is nobody to compete with.

    Args:
        part: the candidates.
        positive_logits: [queries].
        label_smoothing: share of the target that is spread evenly over the candidates.

    Returns:
        [queries].
    """
    if part.target is None:
        rows = torch.where(part.left_out.all(dim=1), 0, part.logits.logsumexp(dim=1) - positive_logits)
    else:
        rows = functional.cross_entropy(part.logits, part.target, ignore_index=-1, reduction="none")
    if label_smoothing == 0:
        return rows
    count = (~part.left_out).sum(dim=1)
    mean = part.logits.masked_fill(part.left_out, 0).sum(dim=1) / count.clamp(min=1)
    return rows + label_smoothing * torch.where(count == 0, 0, positive_logits - mean)
