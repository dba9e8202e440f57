"""ApproxNDCG: nDCG itself, made differentiable by soft ranks.

    rho_ij = 1 + sum_{k != j} sigmoid( (s_ik - s_ij) / temperature )        soft rank of candidate j of query i
    L = mean_i ( 1 - sum_j G_ij / log2(1 + rho_ij) )

G is the candidate's gain divided by the list's best possible DCG. With `grades: teacher_rank` the gain of the
teacher's r-th candidate is 1/r, so only the teacher's order matters and the student is rewarded for ranking as it does;
`as_given` takes teacher scores for graded labels with gain 2^y - 1. The lower the temperature, the nearer this is to
true nDCG and the fewer pairs have a gradient.

Forms: the literature and allRank state the negative nDCG, in [-1, 0]; one is added here, so that 0 is the optimum and
a list that teaches nothing adds nothing. The gradient is the same.

Source: Qin et al., A general approximation framework for direct optimization of information retrieval measures
(Information Retrieval 2010), whose text could not be read; code of allegro/allRank (`approxNDCGLoss`), whose `alpha`
is 1 / temperature and which clamps the sigmoid at 1e-10. Grading by the teacher's rank is dualdistill's.

Use when: one list-level number that is read like the metric is wanted, or labels are real grades; it saturates, so
start from a student that already ranks, or from a high temperature.

Reported: no number of the paper could be read.

Edges: a list with one real candidate, or on which the teacher ties all, adds 0 with zero gradient; one with no
candidate is not counted in the mean; a batch of those is 0. Elsewhere tied candidates have the same gain.
"""

import torch
from torch import Tensor

from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.grades import Grades, normalised_gains, ranks_something
from pipelines.objectives.pairs import soft_ranks

__all__ = ["approx_ndcg_loss"]


def approx_ndcg_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    grades: Grades = "teacher_rank",
) -> Tensor:
    """One minus the approximate nDCG, averaged over the queries that have a list.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits, or labels >= 0 with `grades: as_given`; never
            receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides score differences; 1 / alpha of the literature.
        grades: how a teacher score becomes a gain; in a job, where it is a raw logit, always by `teacher_rank`.

    Returns:
        Scalar in [0, 1), up to rounding.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a negative grade, an
            impossible parameter.
    """
    lists = score_lists("approx_ndcg", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("approx_ndcg", "temperature", temperature)
    grade = lists.teacher.to(lists.student.dtype)
    gain = normalised_gains("approx_ndcg", grade, lists.mask, grades=grades)
    ndcg = (gain / (1 + soft_ranks(lists.student / temperature, lists.mask)).log2()).sum(dim=1)
    learnable = ranks_something(grade, lists.mask)
    return torch.where(learnable, 1 - ndcg, 0).sum() / lists.mask.any(dim=1).sum().clamp(min=1)
