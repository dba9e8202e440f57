"""What every contrastive objective demands of a batch of embeddings, checked once and in one wording.

Enters: query and document embeddings, which document is whose positive, which documents are known to be relevant.
Leaves: the same in the dtype to compute in, with the positive counted among the relevant; or an `ObjectiveError`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite, require_indices, working_dtype

__all__ = ["EmbeddingBatch", "embedding_batch", "similarities"]


@dataclass(frozen=True)
class EmbeddingBatch:
    """Checked inputs of a contrastive objective.

    Attributes:
        queries: [queries, dimensions] in the working dtype.
        documents: [documents, dimensions] in the working dtype.
        positive: [queries] int64, row of each query's positive in `documents`, -1 = none.
        relevant: [queries, documents] bool, documents that are no negatives of the query, its positive included.
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
) -> EmbeddingBatch:
    """Check and complete the inputs that all contrastive objectives share.

    Args:
        objective: name used in error messages.
        query_embeddings: [queries, dimensions], any floating dtype.
        document_embeddings: [documents, dimensions], any floating dtype, in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none.
        relevant: [queries, documents] bool, documents known to be relevant to the query (other positives, copies
            of its text); None = only the positive.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive
            out of range.
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
    dtype = working_dtype(queries, documents)
    return EmbeddingBatch(queries.to(dtype), documents.to(dtype), positive_document, is_positive)


def similarities(left: Tensor, right: Tensor) -> Tensor:
    """Dot products [left rows, right rows]; autocast would run them in half precision, whatever dtype they have."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.T
