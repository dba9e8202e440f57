"""ADR-MSE: the student's approximate rank of each candidate should be its rank in the teacher's list.

    rho_ij = 1 + sum_{k != j} sigmoid( (s_ik - s_ij) / temperature )        soft rank of candidate j of query i
    L = mean over candidates (i, j) of the batch of  (r_ij - rho_ij)^2 / log2(1 + r_ij)

r is the candidate's rank by teacher score, the mean of their ranks for tied candidates, so that a student that ties
them too has no loss left. The discount makes errors at the top dearer. Only the teacher's order matters. The lower
the temperature, the nearer the soft ranks are to true ones and the fewer pairs have a gradient.

Source: Schlatt et al., Rank-DistiLLM (arXiv 2405.07920, ECIR 2025), whose formula was read in code, that of
sentence-transformers (`ADRMSELoss`); its `alpha` is 1 / temperature, by default 1 for a cross-encoder's logits.

Use when: the teacher is a ranker without usable scores (a language model's permutation), lists are of moderate length,
and large displacements are the error that matters: the square makes one candidate lost at the bottom dearer
than many small swaps.

Reported: no number of the paper could be read.

Edges: a list with one real candidate adds 0 with zero gradient, though it counts in the mean; a batch without real
candidates is 0. Ties in the teacher share their mean rank.
"""

import torch
from torch import Tensor

from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.grades import tied_ranks
from pipelines.objectives.pairs import soft_ranks

__all__ = ["adr_mse_loss"]


def adr_mse_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
) -> Tensor:
    """Discounted squared error of soft ranks, averaged over all real candidates of the batch.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides score differences; 1 / alpha of the literature.

    Returns:
        Scalar >= 0, in squared ranks.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    lists = score_lists("adr_mse", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("adr_mse", "temperature", temperature)
    ranks = tied_ranks(lists.teacher, lists.mask)
    rank = (ranks.best + ranks.worst).to(lists.student.dtype) / 2
    error = (rank - soft_ranks(lists.student / temperature, lists.mask)).square() / (1 + rank).log2()
    return torch.where(lists.mask, error, 0).sum() / lists.mask.sum().clamp(min=1)
