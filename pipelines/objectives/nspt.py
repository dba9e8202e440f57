"""NSPT, negatives from the student, positives from the teacher: a student that stays compatible with its predecessor.

    L = mean over anchors a of  mean over p of its class of  - ( s_a.t_p / T  -  log sum_{j != a} exp(s_a.s_j / T) )

s are embeddings of the student, t those of the same texts by the previous student, constants, T is `temperature`. A
supervised contrastive loss that pulls each anchor to where its class was, its own earlier embedding included, and
pushes it away from where everything is now. Retrieval reading: queries and documents are stacked, a query and its
positive document are one class (queries with the same positive likewise), the anchors are the queries that have a
positive and those positives. Documents that are known to be relevant to a query, but are not its positive, are neither
pulled nor pushed. The positives are not in the denominator, so that the value may be negative.

Source: arXiv 2310.02699 (COCONUT), its abstract and a reviewer's description; the denominator's set and the means are
what was understood from them. The paper's text could not be read and no official code was found. The paper's anchors
are rehearsal samples (`nspt_contrast`); taking the whole batch is dualdistill's reading.

Use when: a student is trained further while its old index stays in service: new queries must find documents that the
previous student embedded, and old queries documents of the new one. Beside the objective that brings the new knowledge.

Reported: no number of the paper could be read.

Edges: a query without a positive takes no part; a batch of those is 0 with zero gradient.
"""

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite, require_positive_number
from pipelines.objectives.embedding_batch import EmbeddingBatch, embedding_batch, similarities
from pipelines.objectives.masked import zero_probability_logit
from pipelines.objectives.safe_negatives import unrelated_queries

__all__ = ["nspt_contrast", "nspt_loss"]


def nspt_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    previous_query_embeddings: Tensor,
    previous_document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """The contrast over the batch's queries and documents, with queries and positive documents as anchors.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        previous_query_embeddings: [queries, dimensions] of the previous student; never receives a gradient.
        previous_document_embeddings: [documents, dimensions] of the same.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that are not pushed away from that query; None = only its
            positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that neither they
            nor their positives are pushed from each other; None = all texts differ.
        temperature: divides the dot products.

    Returns:
        Scalar of either sign.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive
            out of range, an impossible parameter.
    """
    batch = embedding_batch("nspt", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("nspt", "temperature", temperature)
    previous_queries = _previous("previous_query_embeddings", previous_query_embeddings, query_embeddings)
    previous_documents = _previous("previous_document_embeddings", previous_document_embeddings, document_embeddings)

    taught = batch.has_positive
    positives = batch.positive[taught]
    answered = torch.unique(positives)
    texts = torch.arange(len(batch.documents), device=positives.device)
    labels = torch.cat([positives, texts])
    anchors = torch.cat([torch.arange(len(positives), device=positives.device), len(positives) + answered])
    return nspt_contrast(
        torch.cat([batch.queries[taught], batch.documents]),
        torch.cat([previous_queries[taught], previous_documents]),
        labels,
        anchors,
        temperature=temperature,
        set_aside=_set_aside(batch, answered, labels[anchors].unsqueeze(1) == labels),
    )


def nspt_contrast(
    student: Tensor,
    previous: Tensor,
    labels: Tensor,
    anchors: Tensor,
    *,
    temperature: float,
    set_aside: Tensor | None = None,
) -> Tensor:
    """Each anchor pulled to its class in the previous student, pushed from all else in the student; mean over anchors.

    Args:
        student: [rows, dimensions].
        previous: [rows, dimensions], constants.
        labels: [rows] int64, class of each row.
        anchors: [anchors] int64 rows, in the paper the rehearsal samples.
        temperature: divides the dot products.
        set_aside: [anchors, rows] bool, rows that an anchor is not pushed away from; None = only itself.

    Returns:
        Scalar of either sign; 0 without anchors.
    """
    classes, anchor_class = torch.unique(labels[anchors], return_inverse=True)
    members = torch.isin(labels, classes).nonzero().squeeze(1)
    member_class = torch.searchsorted(classes, labels[members])
    centres = torch.zeros(len(classes), previous.shape[1], dtype=student.dtype, device=student.device)
    centres = centres.index_add(0, member_class, previous.detach()[members].to(student.dtype))
    centres = centres / member_class.bincount(minlength=len(classes)).unsqueeze(1)
    anchored = student.index_select(0, anchors) / temperature
    pulled = (anchored * centres[anchor_class]).sum(dim=1)  # the mean of dot products is the one with the mean

    left_out = torch.arange(len(student), device=anchors.device) == anchors.unsqueeze(1)
    if set_aside is not None:
        left_out = left_out | set_aside
    logits = similarities(anchored, student)
    pushed = logits.masked_fill(left_out, zero_probability_logit(logits.dtype)).logsumexp(dim=1)
    return (pushed - pulled).sum() / max(len(anchors), 1)


def _set_aside(batch: EmbeddingBatch, answered: Tensor, same_class: Tensor) -> Tensor | None:
    """[anchors, rows] bool, known to belong together without being of one class; None when there are no such pairs."""
    taught = batch.has_positive
    relevant = batch.relevant[taught]
    if bool((relevant == batch.is_positive[taught]).all()):
        return None
    queries = ~unrelated_queries(batch)[taught][:, taught]
    by_document = relevant.T[answered]
    documents = (by_document.float() @ relevant.float()) > 0  # both are relevant to some query
    together = torch.cat([torch.cat([queries, relevant], dim=1), torch.cat([by_document, documents], dim=1)])
    return together & ~same_class


def _previous(label: str, embeddings: Tensor, like: Tensor) -> Tensor:
    if embeddings.shape != like.shape or not embeddings.is_floating_point():
        raise ObjectiveError(
            f"nspt: {label} must be floating of shape {tuple(like.shape)}, "
            f"got {embeddings.dtype} of shape {tuple(embeddings.shape)}"
        )
    require_finite("nspt", label, embeddings)
    return embeddings.detach()
