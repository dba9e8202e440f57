"""AMCL, adaptive multi-head contrastive learning: several similarities per pair, each with a temperature of its own.

    sim_m,ij = cos( slice m of q_i, slice m of d_j ) ,  m = 1 .. heads
    tau_m,ij = temperature_m exp( temperature_slope_m sim_m,ij )
    L        = mean_i - log softmax_j( sum_m sim_m,ij / tau_m,ij )_d+  +  temperature_weight * mean log tau

A product of the heads' posteriors is a sum inside one softmax. A pair's temperature is its variance: heads that are
unsure about a pair say little about it. Here heads are equal slices of one embedding, each divided by its own length,
and the temperature is predicted from the pair's similarity; `temperature` and `temperature_slope` are one number or one
per head, and may be learned with the student. The sum over heads multiplies the logits, so that heads at 0.05 are as
sharp as one cosine at 0.05 / heads. The default, 0.2 with 4 heads, is as sharp as a single cosine at 0.05; with other
heads write 0.05 heads for that. The regulariser keeps tau from growing where it is learned; constants need none.

Source: arXiv 2310.05615 (ECCV 2024), idea from a secondary source: the paper's text, how it predicts temperatures and
its regulariser could not be read, no official code was found. Slices as heads and the slope are dualdistill's readings.

Use when: one cosine is too coarse and temperatures are to be learned; start with `info_nce`, which one head is. Search
uses the cosine of the whole embedding, which weighs slices by their length: compare both before serving.

Reported: 1 to 5% over SimCLR, MoCo and Barlow Twins, more with more augmentations (a secondary source). No retrieval
result.

Edges: a query without a positive is left out of both parts; a batch of those is 0 with zero gradient. Documents known
to be relevant leave the softmax and the mean of log tau. With a temperature_weight the loss may be negative.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite
from pipelines.objectives.embedding_batch import EmbeddingBatch, embedding_batch, similarities
from pipelines.objectives.masked import zero_probability_logit

__all__ = ["amcl_loss", "head_similarities", "multihead_logits"]

_STEEPEST = 10.0
"""Of a learned slope: temperatures of one head then differ by e^20, and beyond that exp would overflow."""


def amcl_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    heads: int = 4,
    temperature: float | Tensor = 0.2,
    temperature_slope: float | Tensor = 0.0,
    temperature_weight: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy over the batch's documents on the sum of tempered head similarities.

    Args:
        query_embeddings: [queries, dimensions]; each of its slices is divided by its length here.
        document_embeddings: [documents, dimensions], in any order; likewise.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only
            its positive.
        heads: into how many equal slices an embedding is cut; divides the dimensions.
        temperature: divides each head's similarities, at similarity 0; all `heads` are summed, so that one cosine of
            the same sharpness has temperature / heads. A number, or a tensor [] or [heads], with gradient if learned.
        temperature_slope: how the logarithm of a pair's temperature grows with its similarity, within +-10; a number,
            or a tensor [] or [heads], with gradient if learned.
        temperature_weight: of the mean logarithm of the temperatures.

    Returns:
        Scalar; >= 0 without `temperature_weight`.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive
            out of range, heads that do not divide the dimensions, an impossible parameter.
    """
    batch = embedding_batch("amcl", query_embeddings, document_embeddings, positive_document, relevant)
    queries, documents = (_slices(side, heads) for side in (batch.queries, batch.documents))
    base = _per_head("temperature", temperature, heads, batch.queries)
    if bool((base <= 0).any()):
        raise ObjectiveError(f"amcl: temperature must be positive, got {base.detach().flatten().tolist()}")
    if not 0 <= temperature_weight < float("inf"):
        raise ObjectiveError(f"amcl: temperature_weight must be a finite number >= 0, got {temperature_weight}")
    if isinstance(temperature_slope, float | int) and abs(temperature_slope) > _STEEPEST:
        raise ObjectiveError(f"amcl: temperature_slope must be within +-{_STEEPEST:g}, got {temperature_slope}")

    if not isinstance(temperature_slope, Tensor) and temperature_slope == 0:
        # One matrix product for all heads: the usual case costs what InfoNCE does.
        log_temperature = base.log()
        logits = similarities(_joined(queries / base), _joined(documents))
    else:
        slope = _per_head("temperature_slope", temperature_slope, heads, batch.queries).clamp(-_STEEPEST, _STEEPEST)
        compared = head_similarities(queries, documents)
        log_temperature = base.log() + slope * compared
        logits = multihead_logits(compared, log_temperature.exp())

    is_negative = ~batch.relevant
    logits = logits.masked_fill(~(is_negative | batch.is_positive), zero_probability_logit(logits.dtype))
    total = functional.cross_entropy(logits, batch.positive, ignore_index=-1, reduction="sum")
    loss = total / batch.has_positive.sum().clamp(min=1)
    if temperature_weight == 0:
        return loss
    return loss + temperature_weight * _mean_log_temperature(log_temperature, batch)


def head_similarities(left: Tensor, right: Tensor) -> Tensor:
    """Dot products per head, [heads, left rows, right rows], of [heads, rows, dimensions]; not in half precision."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.mT


def multihead_logits(compared: Tensor, temperature: Tensor) -> Tensor:
    """[left rows, right rows] sum over heads of similarity over temperature, both [heads, left rows, right rows]."""
    return (compared / temperature).sum(dim=0)


def _mean_log_temperature(log_temperature: Tensor, batch: EmbeddingBatch) -> Tensor:
    """Over the pairs in the softmaxes of queries with a positive, and over heads."""
    counted = (~batch.relevant | batch.is_positive) & batch.has_positive.unsqueeze(1)
    per_pair = log_temperature.mean(dim=0)
    return torch.where(counted, per_pair, 0).sum() / counted.sum().clamp(min=1)


def _slices(embeddings: Tensor, heads: int) -> Tensor:
    """[heads, rows, dimensions / heads], every row of unit length."""
    rows, dimensions = embeddings.shape
    if heads < 1 or dimensions % heads:
        raise ObjectiveError(f"amcl: heads must divide the {dimensions} dimensions, got {heads}")
    cut = embeddings.reshape(rows, heads, dimensions // heads)
    return functional.normalize(cut, dim=2).transpose(0, 1)


def _joined(slices: Tensor) -> Tensor:
    return slices.transpose(0, 1).flatten(1)


def _per_head(label: str, value: float | Tensor, heads: int, like: Tensor) -> Tensor:
    """[heads or 1, 1, 1] in the dtype and on the device of `like`."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype, device=like.device)
    if tensor.shape not in {torch.Size(()), torch.Size((heads,))}:
        raise ObjectiveError(f"amcl: {label} must be a number or one per head ({heads}), got {tuple(tensor.shape)}")
    require_finite("amcl", label, tensor.reshape(-1))
    return tensor.to(like.device, like.dtype).reshape(-1, 1, 1)
