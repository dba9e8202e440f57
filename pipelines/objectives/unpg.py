"""UNPG, unified negative pair generation: every query of the batch is also compared with the pairs of queries.

    own_i    = scale (cos(q_i, d) - margin [d = d+_i])       over the documents d that are not relevant to q_i, and d+_i
    shared   = scale cos(q_j, q_k), j < k, whose positives differ, within the whiskers of their own box plot
    L        = mean_i - log( exp(own_i,d+) / ( sum_d exp(own_i,d) + sum_pairs exp(shared) ) )

The classification form of a loss sees negatives of classes (here documents); the metric form sees pairs of samples
(here queries). UNPG puts the batch's pairs, once and for all rows, beside each row's own negatives, so that queries
about different things also part. `iqr_filter` drops both tails of the pairs: probable false negatives and those that
are far apart anyhow. Vectors are divided by their length here, as the method does. In the paper documents are class
weights and `margin` is CosFace's 0.35 at scale 64; our default scale is 20, the 1 / 0.05 of the other objectives.

Source: arXiv 2203.11593, official code Jung-Jun-Uk/UNPG (CosFace head); on g GPUs that code repeats the pairs g times,
this one never does.

Use when: queries of different topics crowd together and batches are large; it contains InfoNCE (margin 0, no pairs): do
not add `info_nce` to it.

Reported: ResNet-100 faces, CosFace to CosFace + UNPG: IJB-B at 1e-5 / 1e-4 89.38 / 94.39 to 90.61 / 94.99, IJB-C 94.42
/ 96.35 to 94.48 / 96.39 (the official README). No retrieval result.

Edges: a query without a positive takes no part, in the pairs neither; a batch of those is 0 with zero gradient. Pairs
of queries with the same text or positive, or one of whose positives is relevant to the other query, are no negatives. A
batch of one query has no pairs.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import EmbeddingBatch, embedding_batch, similarities
from pipelines.objectives.iqr_filter import iqr_filter
from pipelines.objectives.masked import zero_probability_logit
from pipelines.objectives.safe_negatives import unrelated_queries

__all__ = ["negative_query_pairs", "unpg_loss"]


def unpg_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    scale: float = 20.0,
    margin: float = 0.35,
    whisker: float = 1.5,
) -> Tensor:
    """Softmax cross-entropy over the batch's documents and its kept pairs of queries, over queries with a positive.

    Args:
        query_embeddings: [queries, dimensions]; divided by their length here.
        document_embeddings: [documents, dimensions], in any order; divided by their length here.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only
            its positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that they are no
            pair; None = all texts differ.
        scale: multiplies cosines, 1 / temperature.
        margin: subtracted from the positive's cosine before the scale.
        whisker: of the filter on pairs, in interquartile ranges.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive
            out of range, an impossible parameter.
    """
    batch = embedding_batch("unpg", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("unpg", "scale", scale)
    for label, value in (("margin", margin), ("whisker", whisker)):
        if not 0 <= value < float("inf"):
            raise ObjectiveError(f"unpg: {label} must be a finite number >= 0, got {value}")

    queries = functional.normalize(batch.queries, dim=1)
    documents = functional.normalize(batch.documents, dim=1)
    positives = documents.index_select(0, batch.positive_column.squeeze(1))
    target = scale * ((queries * positives).sum(dim=1) - margin)
    own = similarities(scale * queries, documents)
    own.masked_fill_(batch.relevant & ~batch.is_positive, zero_probability_logit(own.dtype))
    own.scatter_add_(1, batch.positive_column, own.new_full((len(own), 1), -scale * margin))
    losses = functional.cross_entropy(own, batch.positive, ignore_index=-1, reduction="none")
    pairs = negative_query_pairs(similarities(queries, queries), batch)
    kept = pairs[iqr_filter(pairs, whisker)]
    if len(kept):
        # log(exp(own) + exp(shared)) - target, without a [queries, documents + pairs] matrix
        losses = losses - functional.logsigmoid(losses + target - (scale * kept).logsumexp(dim=0))
    return torch.where(batch.has_positive, losses, 0).sum() / batch.has_positive.sum().clamp(min=1)


def negative_query_pairs(cosines: Tensor, batch: EmbeddingBatch) -> Tensor:
    """Those of [queries, queries] cosines, [pairs], whose queries have positives that do not belong together."""
    return cosines[unrelated_queries(batch).triu(diagonal=1)]
