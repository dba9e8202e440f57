"""Ranker loss: softmax over one list, the positive's column is the class.

    L = mean_i - log( exp(t_i,pos) / sum_j exp(t_ij) )        over the real candidates, temperature 1

Source: the ranker's loss of AR2, arXiv 2110.03611; official code microsoft/AR2, `co_training_wiki_train.py`. The ranker
trains on it (`pipelines.training.ranker`); it is no term of a student's objective.

Use when: a cross-encoder learns from labels, one positive and mined negatives per query.

Reported: as the ranker's part of AR2, Natural Questions R@1 60.6 re-ranking with the first ranker, 64.2 after it
trained along (both on the first retriever's results).

Edges: a query without a positive is left out; a batch of those is 0 with zero gradient. One real candidate adds 0.
"""

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite, working_dtype
from pipelines.objectives.masked import masked_log_softmax
from pipelines.objectives.positive_column import positive_column

__all__ = ["ranker_loss"]


def ranker_loss(scores: Tensor, positive: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of the positive's column in nats, averaged over the queries that have one.

    Args:
        scores: [queries, candidates], the ranker's logits, which learn.
        positive: [queries] int64, column of the positive; -1 = none.
        mask: [queries, candidates] bool, True = real candidate; None = all.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a positive that is
            padding or outside the list.
    """
    if scores.ndim != 2 or not scores.is_floating_point() or scores.shape[1] < 2:
        raise ObjectiveError(
            "ranker_loss: scores must be a floating [queries, candidates] tensor with at least 2 candidates, "
            f"got {scores.dtype} of shape {tuple(scores.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    require_bool_like("ranker_loss", "mask", mask, scores)
    place = positive_column("ranker_loss", positive, mask)
    logits = scores.masked_fill(~mask, 0)
    require_finite("ranker_loss", "scores", logits)
    log_probability = masked_log_softmax(logits.to(working_dtype(logits)), mask)
    right = log_probability.gather(1, place.index).masked_fill(~place.known, 0)
    return -right.sum() / place.known.sum().clamp(min=1)
