"""CWCL, continuously weighted contrastive loss: every document of the batch is a positive, as much as its weight says.

    w_ij = sigmoid(t_ij / teacher_temperature) where the teacher scored the pair
           1 for documents known to be relevant, 0 elsewhere
    L_cw = mean_i  - sum_j w_ij log softmax_j(q_i.d_j / temperature) / sum_j w_ij
    L_in = mean_i  - log( exp(q_i.d+_i / temperature) / sum_k exp(q_k.d+_i / temperature) )
    L    = L_cw + L_in

InfoNCE with soft targets: a pair that is half relevant is pulled half as much instead of being pushed away. The weights
are constants, normalised within each row. The other direction, document to query, is plain InfoNCE over the positives:
L_in ranks, for each positive document, its query among the batch's queries that have a positive (other queries to which
the document is relevant, or that have the query's text, are left out). In the paper w_ij = 1/2 + e_i.e_j / 2 for unit
embeddings e of a frozen model (`similarity_weights`); a cross-encoder's probabilities are a sharper source and the one
that a job has. Weights near 1/2 for unrelated pairs flatten the target, which `weight_exponent` (dualdistill's
addition) undoes: w_ij to that power.

Forms: the sigmoid of a logit is a probability if the teacher was trained with a binary loss. One that was trained
listwise, as this project's own `teacher.train` does, has no zero: add any number to a query's logits and it is the same
teacher, but other weights. For it `weighting: softmax` takes w_ij from the softmax of t_i / teacher_temperature over
the query's scored list, which no such number changes.

Source: arXiv 2309.14580 (NeurIPS 2023). The formula is from general knowledge and agrees with two re-implementations;
the paper's text could not be read and no official code was found.

Use when: the teacher's probabilities are graded and many in-batch pairs are partly relevant, so that one-hot InfoNCE
would push neighbours apart; raise `weight_exponent` when weights are nearly uniform.

Reported: +5 to 8% absolute on zero-shot image classification, +20 to 30% on speech (its abstract).

Edges: a query without a positive takes no part in either direction; a batch of those is 0 with zero gradient. With a
single query L_in is 0. Teacher scores that are not `scored` have no influence, NaN included.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite, require_positive_number
from pipelines.objectives.embedding_batch import EmbeddingBatch, embedding_batch, similarities
from pipelines.objectives.masked import masked_log_softmax, zero_probability_logit
from pipelines.objectives.safe_negatives import scored_by_teacher

__all__ = ["cwcl_loss", "in_batch_query_loss", "similarity_weights", "weighted_contrast"]


def cwcl_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    batch_teacher_scores: Tensor,
    scored: Tensor,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
    weighting: Literal["sigmoid", "softmax"] = "sigmoid",
    weight_exponent: float = 1.0,
) -> Tensor:
    """Sum of the weighted query-to-document and the plain document-to-query term.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        batch_teacher_scores: [queries, documents] raw teacher logits; never receives a gradient.
        scored: [queries, documents] bool, pairs the teacher scored.
        relevant: [queries, documents] bool, documents known to be relevant: weight 1, and no negatives in the other
            direction; None = only the positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that they are no
            negatives of each other; None = all texts differ.
        weights: [queries, documents] >= 0, replaces the weights that follow from the teacher and `relevant`; constants.
            Library only: no step of a job offers it.
        temperature: divides the dot products.
        teacher_temperature: divides teacher scores.
        weighting: what a scored pair weighs, `sigmoid` of its logit or its share in the `softmax` of its list.
        weight_exponent: power of the weights before each row is normalised.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings or teacher
            scores, a positive out of range, negative weights or a row of zeros, an impossible parameter.
    """
    batch = embedding_batch("cwcl", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("cwcl", "temperature", temperature)
    require_positive_number("cwcl", "teacher_temperature", teacher_temperature)
    require_positive_number("cwcl", "weight_exponent", weight_exponent)
    if weighting not in ("sigmoid", "softmax"):
        raise ObjectiveError(f"cwcl: unknown weighting {weighting!r}")
    teacher, scored = scored_by_teacher("cwcl", batch, batch_teacher_scores, scored)
    if weights is None:
        teacher = teacher / teacher_temperature
        share = teacher.sigmoid() if weighting == "sigmoid" else masked_log_softmax(teacher, scored).exp()
        weights = torch.where(scored, share, 0).masked_fill(batch.relevant, 1)
    else:
        weights = _given_weights(weights, batch)
    logits = similarities(batch.queries, batch.documents) / temperature
    weights = weights.to(logits.dtype).pow(weight_exponent)
    return weighted_contrast(logits, weights, batch.has_positive) + in_batch_query_loss(logits, batch)


def weighted_contrast(logits: Tensor, weights: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy of each row's softmax with its normalised weights, averaged over the counted rows.

    Args:
        logits: [rows, columns].
        weights: [rows, columns] >= 0, constants; a counted row has a positive sum.
        counted: [rows] bool.
    """
    share = weights.masked_fill(~counted.unsqueeze(1), 0)
    share = share / share.sum(dim=1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    return -(share * logits.log_softmax(dim=1)).sum() / counted.sum().clamp(min=1)


def in_batch_query_loss(logits: Tensor, batch: EmbeddingBatch) -> Tensor:
    """InfoNCE from each positive document to its query, among the queries that have a positive.

    Args:
        logits: [queries, documents], similarities over the temperature.
        batch: positives and relevance.
    """
    column = batch.positive_column.squeeze(1)
    by_document = logits.index_select(1, column).T  # row i: the positive of query i, column k: query k
    own = torch.eye(len(column), dtype=torch.bool, device=column.device)
    left_out = batch.relevant.index_select(1, column).T | ~batch.has_positive
    by_document = by_document.masked_fill(left_out & ~own, zero_probability_logit(logits.dtype))
    own_query = torch.arange(len(column), device=column.device)
    losses = functional.cross_entropy(by_document, own_query, reduction="none")
    return torch.where(batch.has_positive, losses, 0).sum() / batch.has_positive.sum().clamp(min=1)


def similarity_weights(reference: Tensor) -> Tensor:
    """The paper's weights, 1/2 + e_i.e_j / 2, from unit embeddings of the same items in a frozen model.

    Args:
        reference: [items, dimensions], rows of unit length.

    Returns:
        [items, items] in [0, 1], without gradient.
    """
    frozen = reference.detach()
    return 0.5 + similarities(frozen, frozen) / 2


def _given_weights(weights: Tensor, batch: EmbeddingBatch) -> Tensor:
    if weights.shape != batch.relevant.shape or not weights.is_floating_point():
        raise ObjectiveError(
            f"cwcl: weights must be floating of shape {tuple(batch.relevant.shape)}, "
            f"got {weights.dtype} of shape {tuple(weights.shape)}"
        )
    weights = weights.detach()
    require_finite("cwcl", "weights", weights)
    empty = batch.has_positive & (weights.sum(dim=1) <= 0)
    if bool((weights < 0).any()) or bool(empty.any()):
        raise ObjectiveError(
            f"cwcl: weights must be >= 0 with a positive sum in every row that has a positive, "
            f"the smallest is {float(weights.min())} and {int(empty.sum())} row(s) sum to 0"
        )
    return weights
