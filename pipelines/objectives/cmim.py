"""cMIM: InfoNCE whose negatives are averaged instead of summed, so its value does not grow with the batch.

    M_i = number of documents that are no positives of query i
    L   = mean over queries i with a positive of
          - log( exp(q_i.d_i+ / T) / ( exp(q_i.d_i+ / T) + (1 / M_i) sum over the M_i negatives d of exp(q_i.d / T) ) )

A guess at random costs log 2 whatever the number of negatives, where InfoNCE's costs log(1 + M_i). So lists of
different lengths and batches of different sizes weigh the same, and curves of such runs can be compared.

Source: the contrastive term of cMIM, arXiv 2502.19642, without its autoencoder. The formula is from general knowledge,
the paper's text could not be read, and no official code was found.

Use when: batch size or list length changes during a run, or between runs that are to be compared. One hard negative
among many easy ones is diluted by them, so it wants a lower temperature than `info_nce`.

Reported: no number of the paper could be read.

Edges: a query without a positive, or without a negative, adds 0; the former is not counted in the mean either. A batch
without positives is 0 with zero gradient.
"""

from torch import Tensor
from torch.nn import functional

from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import embedding_batch, similarities
from pipelines.objectives.masked import zero_probability_logit

__all__ = ["cmim_loss"]


def cmim_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Softmax cross-entropy of the positive against the mean negative, averaged over the queries with a positive.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only its
            positive.
        temperature: divides the dot products.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive out
            of range, an impossible parameter.
    """
    batch = embedding_batch("cmim", query_embeddings, document_embeddings, positive_document, relevant)
    require_positive_number("cmim", "temperature", temperature)
    logits = similarities(batch.queries / temperature, batch.documents)
    # The mean of M exponentials is their sum with log M taken off each logit: an ordinary cross-entropy.
    count = (~batch.relevant).sum(dim=1, keepdim=True).clamp(min=1)
    shift = count.to(logits.dtype).log().neg().expand_as(logits)
    shift = shift.masked_fill(batch.relevant, zero_probability_logit(logits.dtype))
    shift = shift.scatter(1, batch.positive_column, 0)
    total = functional.cross_entropy(logits + shift, batch.positive, ignore_index=-1, reduction="sum")
    return total / batch.has_positive.sum().clamp(min=1)
