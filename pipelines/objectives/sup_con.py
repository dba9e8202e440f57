"""SupCon: supervised contrastive learning, for queries with several positives and documents with several queries.

    s_id = q_i.d / temperature; P_i = documents relevant to query i; Q_d = queries to which document d is relevant
    query_to_document:  mean over queries i with P_i of   - mean_(p in P_i) log( exp s_ip / sum_(documents d) exp s_id )
    document_to_query:  mean over documents d with Q_d of - mean_(j in Q_d) log( exp s_jd / sum_(queries i) exp s_id )
    L = sum of the chosen directions

Positives stay in each other's denominators, so at the optimum they share the probability evenly; `decoupled_softmax`
takes them out instead. `relevant` says who belongs to whom: other positives and copies of their text are pulled in
here, where `info_nce` only leaves them out.

Source: Khosla et al., arXiv 2004.11362 (the form with the mean outside the logarithm), between two sides instead of
among one. Both directions summed are the multi-modal term of COCONUT, arXiv 2310.02699, whose exact denominators could
not be checked against the paper.

Use when: queries have several labelled positives, or many queries share documents, and both sides should cluster.

Reported: no number of the papers could be read.

Edges: a query without a relevant document, and a document without a query, is no anchor; with no anchor at all 0 with
zero gradient. A batch of one query has nothing to learn in `document_to_query`. Unlike in `info_nce` a query whose
documents are all relevant still learns: to like them equally.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import embedding_batch, similarities

__all__ = ["sup_con_loss"]

Direction = Literal["query_to_document", "document_to_query"]


def sup_con_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    temperature: float = 0.05,
    directions: Sequence[Direction] = ("query_to_document", "document_to_query"),
) -> Tensor:
    """Cross-entropy against the uniform distribution over an anchor's positives, averaged over anchors.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none.
        relevant: [queries, documents] bool, all positives of each query; None = only the positive.
        same_query: [queries, queries] bool, queries of equal text: they share their positives; None = all texts differ.
        temperature: divides the dot products.
        directions: which sides are anchors; their losses are added.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive out
            of range, an impossible parameter.
    """
    batch = embedding_batch("sup_con", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("sup_con", "temperature", temperature)
    if not directions or len(set(directions)) < len(directions) or not set(directions) <= {*get_args(Direction)}:
        raise ObjectiveError(f"sup_con: directions must be one or both of {get_args(Direction)}, got {directions}")
    logits = similarities(batch.queries / temperature, batch.documents)
    loss = logits.new_zeros(())
    if "query_to_document" in directions:
        loss = loss + _anchored(logits, batch.relevant, over=1)
    if "document_to_query" in directions:
        loss = loss + _anchored(logits, batch.relevant, over=0)
    return loss


def _anchored(logits: Tensor, positives: Tensor, *, over: int) -> Tensor:
    """The softmax ranges over dimension `over`, the anchors are the other one."""
    count = positives.sum(dim=over, keepdim=True)
    shares = positives.to(logits.dtype) / count.clamp(min=1)
    return -(logits.log_softmax(dim=over) * shares).sum() / (count > 0).sum().clamp(min=1)
