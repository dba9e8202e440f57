"""SigLIP: every (query, document) pair of the batch is its own yes-or-no question.

    z_ij = scale * q_i.d_j + bias
    y_ij = +1 where the document is relevant to the query, -1 elsewhere
    L    = mean over queries i with a positive of  - sum over all documents j of log sigmoid(y_ij z_ij)

No softmax: no pair's loss depends on the others, so several positives need no special care and neither does a small
batch. The bias starts the loss near the truth that almost all pairs are negative; both numbers may be learned. All
`relevant` documents count as positives: copies of their text would otherwise be pushed away.

Source: arXiv 2303.15343; official code compared with: open_clip's `SigLipLoss` on one worker. With hard negatives there
are more documents than queries; the divisor stays the number of queries.

Use when: batches are small, or queries have several positives; learn `scale` and `bias`, which the value depends on far
more than a softmax depends on its temperature.

Reported: no number of the paper could be read.

Edges: a query without a positive is left out; a batch of those is 0 with zero gradient. The loss of a pair is never
exactly 0, so a query whose documents are all relevant still pulls them up.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import embedding_batch, similarities

__all__ = ["siglip_loss"]


def siglip_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
) -> Tensor:
    """Binary cross-entropy of every pair, summed over documents, averaged over the queries that have a positive.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none, the query is left out.
        relevant: [queries, documents] bool, all known positives of each query; None = only the positive.
        scale: multiplies the dot products (1 / temperature); a 0-dim tensor receives a gradient.
        bias: added to them; a 0-dim tensor receives a gradient.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive out
            of range, an impossible parameter.
    """
    batch = embedding_batch("siglip", query_embeddings, document_embeddings, positive_document, relevant)
    require_positive_number("siglip", "scale", scale)
    if not abs(float(bias.detach()) if isinstance(bias, Tensor) else bias) < float("inf"):
        raise ObjectiveError(f"siglip: bias must be a finite number, got {bias}")
    logits = similarities(batch.queries * scale, batch.documents) + bias
    losses = -functional.logsigmoid(torch.where(batch.relevant, logits, -logits))
    return losses.sum(dim=1).masked_fill(~batch.has_positive, 0).sum() / batch.has_positive.sum().clamp(min=1)
