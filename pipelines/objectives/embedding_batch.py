"""What every contrastive objective demands of a batch of embeddings, checked once and in one wording.

Enters: query and document embeddings, which document is whose positive, which documents are known to be relevant.
Leaves: the same in the dtype to compute in, with the positive counted among the relevant; or an `ObjectiveError`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite, require_indices, working_dtype

__all__ = ["EmbeddingBatch", "embedding_batch", "shared_by_equal_queries", "similarities"]


@dataclass(frozen=True)
class EmbeddingBatch:
    """Checked inputs of a contrastive objective.

    Attributes:
        queries: [queries, dimensions] in the working dtype.
        documents: [documents, dimensions] in the working dtype.
        positive: [queries] int64, row of each query's positive in `documents`, -1 = none.
        relevant: [queries, documents] bool, documents that are no negatives of the query: its positive included, and
            what is relevant to another query of the same text.
    """

    queries: Tensor
    documents: Tensor
    positive: Tensor
    relevant: Tensor

    @property
    def has_positive(self) -> Tensor:
        """[queries] bool."""
        return self.positive >= 0

    @property
    def positive_column(self) -> Tensor:
        """[queries, 1] int64 for `gather`; 0 where there is no positive."""
        return self.positive.clamp(min=0).unsqueeze(1)

    @property
    def is_positive(self) -> Tensor:
        """[queries, documents] bool, True at each query's positive."""
        return torch.arange(len(self.documents), device=self.positive.device) == self.positive.unsqueeze(1)


def embedding_batch(
    objective: str,
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    relevant: Tensor | None,
    same_query: Tensor | None = None,
) -> EmbeddingBatch:
    """Check and complete the inputs that all contrastive objectives share.

    Args:
        objective: name used in error messages.
        query_embeddings: [queries, dimensions], any floating dtype.
        document_embeddings: [documents, dimensions], any floating dtype, in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none.
        relevant: [queries, documents] bool, documents known to be relevant to the query (other positives, copies
            of its text); None = only the positive.
        same_query: [queries, queries] bool, True where two queries have the same text, the diagonal included; None =
            all texts differ.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive
            out of range, a `same_query` that is no grouping of the queries.
    """
    queries, documents = query_embeddings, document_embeddings
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ObjectiveError(
            f"{objective}: needs [queries, dimensions] and [documents, dimensions], "
            f"got {tuple(queries.shape)} and {tuple(documents.shape)}"
        )
    if not (queries.is_floating_point() and documents.is_floating_point()):
        raise ObjectiveError(f"{objective}: embeddings must be floating, got {queries.dtype} and {documents.dtype}")
    rows, width = queries.shape[0], documents.shape[0]
    if width < 2:
        raise ObjectiveError(f"{objective}: a batch of fewer than 2 documents has no negative")
    require_finite(objective, "query_embeddings", queries)
    require_finite(objective, "document_embeddings", documents)
    require_indices(objective, "positive_document", positive_document, rows=rows, width=width)
    is_positive = torch.arange(width, device=positive_document.device) == positive_document.unsqueeze(1)
    if relevant is not None:
        require_bool_like(objective, "relevant", relevant, is_positive)
        is_positive = is_positive | relevant
    if same_query is not None:
        _require_same_query(objective, same_query, rows)
        is_positive = shared_by_equal_queries(is_positive, same_query)
    dtype = working_dtype(queries, documents)
    return EmbeddingBatch(queries.to(dtype), documents.to(dtype), positive_document, is_positive)


def shared_by_equal_queries(relevant: Tensor, same_query: Tensor) -> Tensor:
    """What is relevant to a query, [queries, documents], is relevant to every query of its text.

    Whoever compares queries leaves out those to which the other's positive is relevant; so this is all it takes for
    queries of equal text, at cosine 1, not to be each other's hardest negatives.
    """
    (repeated,) = (same_query.sum(dim=1) > 1).nonzero(as_tuple=True)
    if len(repeated) == 0:
        return relevant
    first = same_query[repeated].int().argmax(dim=1)  # the first query of a text stands for it
    count = torch.zeros_like(relevant, dtype=torch.int32).index_add_(0, first, relevant[repeated].int())
    return relevant.index_copy(0, repeated, count[first] > 0)


def _require_same_query(objective: str, same_query: Tensor, rows: int) -> None:
    like = same_query.new_empty((), dtype=torch.bool).expand(rows, rows)
    require_bool_like(objective, "same_query", same_query, like)
    first = same_query.int().argmax(dim=1) if rows else same_query.new_zeros(0)
    if not bool((same_query == (first == first.unsqueeze(1))).all() & same_query.diagonal().all()):
        raise ObjectiveError(f"{objective}: same_query must put each query into one group of equals, itself included")


def similarities(left: Tensor, right: Tensor) -> Tensor:
    """Dot products [left rows, right rows]; autocast would run them in half precision, whatever dtype they have."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.T
