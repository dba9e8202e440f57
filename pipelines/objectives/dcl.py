"""DCL: decoupled contrastive learning, InfoNCE without the positive in its own denominator; DCLW weighs the positives.

    dcl:   L = mean over queries i with a positive of  - q_i.d_i+ / T + log sum over negatives n of exp(q_i.n / T)
    dclw:  the first term times  w_i = 2 - Q * softmax over those Q queries of (q_i.d_i+ / sigma)

The negatives are the documents that are not relevant to the query and, with `same_view_negatives`, the other queries.
InfoNCE's gradient shrinks once the positive wins its softmax, in small batches at once; without the positive in the
denominator it does not. `symmetric` adds the same loss with documents as anchors: d_i+ against other queries and, same
view, documents.

Forms: the paper's is SimCLR's, two augmented views of one image: the other images of either view are negatives and both
views are anchors, `same_view_negatives` and `symmetric`. Both are off by default: a query is searched for among
documents, never among queries. The paper removes the positive. The code compared with adds log(1e-45) to its logit
instead, a leak of e^-103 that is far below the tolerances at any temperature used. That code lets the gradient through
w_i; `detach_weight` stops it. Queries that share the positive or the text are no negatives of each other here; the
paper has no such queries.

Source: arXiv 2110.06848; compared with a community implementation (raminnakhli/Decoupled-Contrastive-Learning), the
authors' code was not found. `symmetric` is the paper's sum over both views.

Use when: batches are small, below 256 queries with few negatives each. The loss has no lower bound: use it for a
student that normalises its embeddings.

Reported: SimCLR with DCL 68.2% ImageNet top-1 at batch 256 and 200 epochs, 6.4 above SimCLR; NNCLR with DCL 72.3%.

Edges: a query without a positive is left out; one without a negative adds 0; a batch of those is 0 with zero gradient.
The loss may be negative.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import EmbeddingBatch, embedding_batch
from pipelines.objectives.masked import zero_probability_logit
from pipelines.objectives.partition import Direction, direction_partition, joined

__all__ = ["dcl_loss", "dclw_loss"]


def dcl_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    temperature: float = 0.1,
    same_view_negatives: bool = False,
    symmetric: bool = False,
) -> Tensor:
    """Negatives' log-sum-exp minus the positive's logit, averaged over the queries that have a positive.

    Args:
        query_embeddings: [queries, dimensions]; used as given and expected to be of unit length.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only its
            positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that they are no
            negatives of each other; None = all texts differ.
        temperature: divides the dot products.
        same_view_negatives: other queries are negatives of a query, and with `symmetric` other documents of a document:
            the paper's form, as in SimCLR.
        symmetric: add the loss with the positives as anchors, the paper's form as well.

    Returns:
        Scalar.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive out
            of range, an impossible parameter.
    """
    batch = embedding_batch("dcl", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("dcl", "temperature", temperature)
    positive_logits = _positive_similarity(batch) / temperature
    return _decoupled(batch, positive_logits, temperature, same_view_negatives, symmetric)


def dclw_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    temperature: float = 0.1,
    sigma: float = 0.5,
    same_view_negatives: bool = False,
    symmetric: bool = False,
    detach_weight: bool = False,
) -> Tensor:
    """DCL whose positives weigh the more the farther apart they are; the weights average to 1.

    Args:
        query_embeddings: [queries, dimensions]; used as given and expected to be of unit length.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only its
            positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that they are no
            negatives of each other; None = all texts differ.
        temperature: divides the dot products.
        sigma: divides the positives' dot products in the weights.
        same_view_negatives: other queries are negatives of a query, and with `symmetric` other documents of a document:
            the paper's form, as in SimCLR.
        symmetric: add the loss with the positives as anchors, the paper's form as well.
        detach_weight: treat the weights as constants.

    Returns:
        Scalar.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive out
            of range, an impossible parameter.
    """
    batch = embedding_batch("dclw", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("dclw", "temperature", temperature)
    require_positive_number("dclw", "sigma", sigma)
    similarity = _positive_similarity(batch)
    logits = (similarity / sigma).masked_fill(~batch.has_positive, zero_probability_logit(similarity.dtype))
    weight = 2 - batch.has_positive.sum() * logits.softmax(dim=0)
    weight = weight.detach() if detach_weight else weight
    return _decoupled(batch, weight * similarity / temperature, temperature, same_view_negatives, symmetric)


def _positive_similarity(batch: EmbeddingBatch) -> Tensor:
    return (batch.queries * batch.documents[batch.positive.clamp(min=0)]).sum(dim=1)


def _decoupled(
    batch: EmbeddingBatch, positive_logits: Tensor, temperature: float, same_view: bool, symmetric: bool
) -> Tensor:
    from_queries: tuple[Direction, ...] = ("query_to_document", "query_to_query")
    from_documents: tuple[Direction, ...] = ("document_to_query", "document_to_document")
    width = 2 if same_view else 1
    rows = _negatives(batch, from_queries[:width], batch.positive_column, temperature, positive_logits)
    if symmetric:
        own_query = torch.arange(len(batch.queries), device=batch.positive.device).unsqueeze(1)
        rows = rows + _negatives(batch, from_documents[:width], own_query, temperature, positive_logits)
    return rows.masked_fill(~batch.has_positive, 0).sum() / batch.has_positive.sum().clamp(min=1)


def _negatives(
    batch: EmbeddingBatch,
    directions: Sequence[Direction],
    positive_column: Tensor,
    temperature: float,
    positive_logits: Tensor,
) -> Tensor:
    part = joined([direction_partition(way, batch, batch.relevant, None, temperature) for way in directions])
    logits = part.logits.scatter(1, positive_column, zero_probability_logit(part.logits.dtype))
    nobody = part.left_out.scatter(1, positive_column, True).all(dim=1)
    return torch.where(nobody, 0, logits.logsumexp(dim=1) - positive_logits)
