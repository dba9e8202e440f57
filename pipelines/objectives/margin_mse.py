"""MarginMSE: the student's margin between positive and negative should be the teacher's.

    L = mean over (query i, negative n) of ( scale * (s_i,pos - s_i,n) - (t_i,pos - t_i,n) )^2

Source: arXiv 2010.02666; with `scale` 1 it is the authors' and sentence-transformers' code: raw scores on
both sides, no temperature, every negative of every query weighs the same. `scale` is dualdistill's: margins
of a cross-encoder are often 5 to 15, those of unit-length embeddings never pass 2, and without it such a
student collapses (nDCG@10 .27 where others reach .88).

Use when: the student is a dot product without normalisation, or `scale` lets cosines reach the teacher's margins; every
negative's distance from the positive should count, not only its rank. Its values are squared logits: give it a small
weight beside others (with weight 1 and scale 10 the quickstart's cosine student fell to .640 nDCG@10 from .913).

Reported: no number of the paper could be read.

Edges: a query without a positive or without a negative adds nothing; a batch of those is 0 with zero
gradient.
"""

import torch
from torch import Tensor

from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.positive_column import positive_column

__all__ = ["margin_mse_loss"]


def margin_mse_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    positive: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """Mean squared difference of margins over all (query, negative) pairs of the batch.

    Args:
        student_scores: [queries, candidates], similarities of the student.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        positive: [queries] int64, the positive's column; -1 = the query has none and is left out. All other
            real columns are its negatives.
        scale: multiplies student margins, so the loss stays in squared teacher units.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a positive
            that is padding or outside the list.
    """
    lists = score_lists("margin_mse", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("margin_mse", "scale", scale)
    place = positive_column("margin_mse", positive, lists.mask)
    # Both margins at once: how far the residuals of positive and negative are apart.
    residual = scale * lists.student - lists.teacher.to(lists.student.dtype)
    margins = torch.where(place.negatives, residual.gather(1, place.index) - residual, 0)
    return margins.square().sum() / place.negatives.sum().clamp(min=1)
