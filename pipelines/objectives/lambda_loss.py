"""LambdaLoss: a logistic loss on pairs, each weighted by what swapping the two would change in nDCG.

    L = mean_i sum over pairs (a, b) of list i with y_a > y_b of  w_ab log2( 1 + exp(-(s_a - s_b) / temperature) )
    w_ab = |G_a - G_b| ( mu delta_ab + rho_ab )                               for ndcg_loss2pp
    rho_ab = |1/D(r_a) - 1/D(r_b)|        delta_ab = |1/D(|r_a - r_b|) - 1/D(|r_a - r_b| + 1)|

r is the candidate's place in the student's present order, D(r) = log2(1 + r), and G its gain divided by the list's best
possible DCG. `lambda_rank` keeps rho alone and `ndcg_loss2` delta alone; `ndcg_loss1` weighs every ordered pair, ties
and the candidate against itself included, by G_a / D(r_a); `none` weighs all pairs alike. Weights are constants:
places are discrete, and only score differences have a gradient. With `grades: teacher_rank` the gain of the teacher's
r-th candidate is 1/r, so only the teacher's order matters; `as_given` takes teacher scores for graded labels
with gain 2^y - 1.

Forms: summed over the pairs of a list and averaged over lists in the paper (from memory), summed over the batch in
allRank, averaged over all pairs of the batch in sentence-transformers (`reduction`). Summed, the loss of an untrained
student on long lists is in the hundreds: weigh it accordingly beside other terms. A pair counts within `top_k` when
either candidate stands in the student's first places in sentence-transformers 6.2, which cites the paper's equation 18,
and when both do in allRank and in earlier sentence-transformers (`top_k_pairs`). The clamps of the latter two at 1e-10
are not reproduced: they erase the gradient of badly misordered pairs.

Source: Wang et al., The LambdaLoss framework for ranking metric optimization (CIKM 2018), whose text could not be
read; code of allegro/allRank and sentence-transformers (`LambdaLoss`). Grading by the teacher's rank is
dualdistill's: the paper has human grades.

Use when: the first places are what the student is judged by; the pair weights move there by themselves. Needs a few
[queries, candidates, candidates] tensors, like every loss on pairs.

Reported: no number of the paper could be read.

Edges: a list with one real candidate or a fully tied teacher adds nothing, nor do ties elsewhere (but for
`ndcg_loss1`); a batch of those is 0 with zero gradient. Tied student scores keep column order, so the weights then
depend on it.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.grades import Grades, discounts, normalised_gains, ranks_something
from pipelines.objectives.pairs import (
    LogBase,
    TopKPairs,
    differences,
    log_unit,
    near_the_top,
    ordered_pairs,
    predicted_order,
    require_non_negative_number,
)

__all__ = ["lambda_loss"]

Weighting = Literal["lambda_rank", "ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "none"]
Reduction = Literal["sum_over_pairs_mean_over_queries", "mean_over_pairs", "sum"]


def lambda_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    weighting: Weighting = "ndcg_loss2pp",
    mu: float = 10.0,
    grades: Grades = "teacher_rank",
    top_k: int | None = None,
    top_k_pairs: TopKPairs = "either",
    log_base: LogBase = "binary",
    reduction: Reduction = "sum_over_pairs_mean_over_queries",
) -> Tensor:
    """Logistic loss over the pairs that the teacher orders, weighted by their effect on nDCG.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits, or labels >= 0 with `grades: as_given`; never
            receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides student scores; 1 / sigma of the literature.
        weighting: of the pairs.
        mu: share of delta beside rho in `ndcg_loss2pp`; unused elsewhere.
        grades: how a teacher score becomes a gain; in a job, where it is a raw logit, always by `teacher_rank`.
        top_k: nDCG is cut off at this place; None = the whole list.
        top_k_pairs: whether `either` or `both` of a pair must stand in the student's first `top_k` places.
        log_base: of the logarithm of the loss; `binary` makes it a bound of the loss in nDCG.
        reduction: `sum_over_pairs_mean_over_queries` divides by the number of queries with a real candidate,
            `mean_over_pairs` by the number of pairs in the batch.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a negative grade, an
            impossible parameter.
    """
    lists = score_lists("lambda_loss", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("lambda_loss", "temperature", temperature)
    require_non_negative_number("lambda_loss", "mu", mu)
    unit = log_unit("lambda_loss", log_base)
    grade = lists.teacher.to(lists.student.dtype)
    counted = near_the_top("lambda_loss", top_k, top_k_pairs, grade)
    gain = normalised_gains("lambda_loss", grade, lists.mask, grades=grades, top_k=top_k)

    order = predicted_order(lists.student, lists.mask)
    student, grade, gain, listed = (values.gather(1, order) for values in (lists.student, grade, gain, lists.mask))
    if weighting == "ndcg_loss1":
        informative = (listed & ranks_something(grade, listed).unsqueeze(1)).to(gain.dtype)
        pairs = informative.unsqueeze(2) * informative.unsqueeze(1) * counted
        weights = pairs * (gain / discounts(gain.shape[1], gain)).unsqueeze(2)
    else:
        pairs = ordered_pairs(grade, listed).mul_(counted)
        weights = pairs
        if weighting != "none":
            weights = differences(gain).mul_(pairs).mul_(_effect_of_places(weighting, mu, gain))

    total = -(weights * functional.logsigmoid(differences(student / temperature))).sum() / unit
    match reduction:
        case "sum_over_pairs_mean_over_queries":
            return total / lists.mask.any(dim=1).sum().clamp(min=1)
        case "mean_over_pairs":
            return total / pairs.sum().clamp(min=1)
        case "sum":
            return total
    raise ObjectiveError(f"lambda_loss: unknown reduction {reduction!r}")


def _effect_of_places(weighting: Weighting, mu: float, like: Tensor) -> Tensor:
    """[width, width]: what |G_a - G_b| is multiplied by for two places of the predicted order."""
    width = like.shape[1]
    inverse = discounts(width, like).reciprocal()
    rho = differences(inverse.unsqueeze(0))[0].abs()
    place = torch.arange(width, device=like.device)
    apart = (place.unsqueeze(1) - place).abs()
    # delta of d places apart is 1/D(d) - 1/D(d + 1), and 0 for a candidate and itself.
    steps = torch.cat([inverse.new_zeros(1), inverse[:-1] - inverse[1:]])
    delta = steps[apart]
    match weighting:
        case "lambda_rank":
            return rho
        case "ndcg_loss2":
            return delta
        case "ndcg_loss2pp":
            return mu * delta + rho
    raise ObjectiveError(f"lambda_loss: unknown weighting {weighting!r}")
