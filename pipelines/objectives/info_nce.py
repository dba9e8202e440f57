"""InfoNCE: each query's positive against every other document of the batch.

    L = mean over queries with a positive of  - log( exp(q.d+ / temperature) / sum_d exp(q.d / temperature) )

The sum runs over all documents of the batch (every query's positive and hard negatives) except those that
`excluded` rules out for that query: its other positives and copies of their text, which are no negatives.

Source: arXiv 1807.03748; equals sentence-transformers' `MultipleNegativesRankingLoss` (query to document) on
normalised embeddings with `scale = 1 / temperature`.

Edges: a query without a positive is left out; a batch of those is 0 with zero gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import (
    require_bool_like,
    require_finite,
    require_indices,
    require_positive_number,
    working_dtype,
    zero_probability_logit,
)

__all__ = ["info_nce_loss"]

_NO_POSITIVE = -1


def info_nce_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive: Tensor,
    *,
    excluded: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Softmax cross-entropy over the batch's documents, averaged over the queries that have a positive.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        excluded: [queries, documents] bool, True = must not count as a negative of that query; None = all
            count.
        temperature: divides the dot products.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a
            positive that is excluded or out of range.
    """
    _check_embeddings(query_embeddings, document_embeddings)
    require_positive_number("info_nce", "temperature", temperature)
    rows, width = query_embeddings.shape[0], document_embeddings.shape[0]
    require_indices("info_nce", "positive", positive, rows=rows, width=width)
    has_positive = positive != _NO_POSITIVE

    dtype = working_dtype(query_embeddings, document_embeddings)
    # Autocast would run this product in half precision again, whatever dtype it is given.
    with torch.autocast(query_embeddings.device.type, enabled=False):
        logits = query_embeddings.to(dtype) @ document_embeddings.to(dtype).T / temperature
    if excluded is not None:
        require_bool_like("info_nce", "excluded", excluded, logits)
        contradiction = has_positive & excluded.gather(1, positive.clamp(min=0).unsqueeze(1)).squeeze(1)
        if bool(contradiction.any()):
            raise ObjectiveError(f"info_nce: the positive of row {int(contradiction.nonzero()[0])} is excluded")
        logits = logits.masked_fill(excluded, zero_probability_logit(dtype))
    total = functional.cross_entropy(logits, positive, ignore_index=_NO_POSITIVE, reduction="sum")
    return total / has_positive.sum().clamp(min=1)


def _check_embeddings(queries: Tensor, documents: Tensor) -> None:
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ObjectiveError(
            "info_nce: needs [queries, dimensions] and [documents, dimensions], "
            f"got {tuple(queries.shape)} and {tuple(documents.shape)}"
        )
    if not (queries.is_floating_point() and documents.is_floating_point()):
        raise ObjectiveError(f"info_nce: embeddings must be floating, got {queries.dtype} and {documents.dtype}")
    if documents.shape[0] < 2:
        raise ObjectiveError("info_nce: a batch of fewer than 2 documents has no negative")
    require_finite("info_nce", "query_embeddings", queries)
    require_finite("info_nce", "document_embeddings", documents)
