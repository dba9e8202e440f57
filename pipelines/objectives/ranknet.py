"""RankNet: the student should put each of two candidates on the side where the teacher puts it.

    L = mean over pairs (i, j) of one list with t_i > t_j + tie_margin of  log( 1 + exp(-(s_i - s_j) / temperature) )

A logistic loss on score differences: of the teacher only the order of each pair counts, near ties can be left out by
a margin, and all pairs of the batch weigh the same, so a long list weighs more than a short one. `top_k` keeps
the pairs that matter for the student's present first places.

Forms: the paper and allRank use the natural logarithm, sentence-transformers the binary one (`log_base`). allRank's
weighting by the difference of the grades multiplies the terms and still divides by the number of pairs
(`weight_by_difference`). Of a pair `top_k` asks that either candidate stands in the student's first places, as
sentence-transformers 6.2 does, or, as in its earlier code, both (`top_k_pairs`). The clamp at 1e-10 of
that earlier code is not reproduced: it erases the gradient of badly misordered pairs.

Source: Burges et al., Learning to rank using gradient descent (ICML 2005), whose text could not be read; code of
allegro/allRank and sentence-transformers (`RankNetLoss`). `tie_margin` is dualdistill's.

Use when: the teacher's order is right but its scale is not the student's, and every misplaced pair costs the same;
`lambda_loss` is the choice when the first places matter most.

Reported: no number of the paper could be read.

Edges: a list with one real candidate or without a pair above the margin adds nothing; a batch without any pair is 0
with zero gradient. Tied teacher scores make no pair. For `top_k`, tied student scores keep column order.
"""

from torch import Tensor
from torch.nn import functional

from pipelines.objectives.checks import require_positive_number, score_lists
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

__all__ = ["ranknet_loss"]


def ranknet_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    tie_margin: float = 0.0,
    weight_by_difference: bool = False,
    top_k: int | None = None,
    top_k_pairs: TopKPairs = "either",
    log_base: LogBase = "natural",
) -> Tensor:
    """Mean logistic loss over the pairs that the teacher orders.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides student scores; 1 / sigma of the literature.
        tie_margin: pairs whose teacher scores differ by no more than this many logits are ties and left out.
        weight_by_difference: multiply each term by the teacher's difference, in logits.
        top_k: only pairs near the student's first `top_k` places count; None = all pairs.
        top_k_pairs: whether `either` or `both` of a pair must stand there.
        log_base: of the logarithm of the loss, `natural` or `binary`.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    lists = score_lists("ranknet", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("ranknet", "temperature", temperature)
    require_non_negative_number("ranknet", "tie_margin", tie_margin)
    unit = log_unit("ranknet", log_base)
    student, teacher, listed = lists.student, lists.teacher.to(lists.student.dtype), lists.mask
    counted = near_the_top("ranknet", top_k, top_k_pairs, teacher)
    if top_k is not None:
        order = predicted_order(student, listed)
        student, teacher, listed = student.gather(1, order), teacher.gather(1, order), listed.gather(1, order)

    weights = ordered_pairs(teacher, listed, margin=tie_margin).mul_(counted)
    number = weights.sum().clamp(min=1)
    if weight_by_difference:
        weights.mul_(differences(teacher))
    log_probability = functional.logsigmoid(differences(student / temperature))
    return -(weights * log_probability).sum() / (number * unit)
