"""List KL: the student's softmax over a query's candidates should be the teacher's.

    p = softmax(t / teacher_temperature)      q = softmax(s / temperature)      over the real candidates
    forward:  L = mean_i sum_j p_ij (log p_ij - log q_ij)        covers all that the teacher likes
    reverse:  L = mean_i sum_j q_ij (log q_ij - log p_ij)        settles on one of the things it likes

Source: Hinton et al., arXiv 1503.02531, on candidate lists; `DistillKLDivLoss` of sentence-transformers is
the forward form with `scale_by_temperature_squared`. Standardising the teacher per list is dualdistill's
addition: a saturated teacher (logits near +-10) is otherwise one-hot at temperature 1.

Use when: the teacher's probabilities are meaningful and not saturated; raise `teacher_temperature` or standardise when
its softmax is nearly one-hot. A good default beside `info_nce`.

Reported: no single headline; the objective of DistillKLDivLoss, FlagEmbedding and PyLate, and of SimANS's MS MARCO
runs.

Edges: a query with one real candidate adds 0 with zero gradient; one with none is not counted in the mean; a
list on which all teacher scores are equal is uniform. The gradient of every row sums to zero.
"""

from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.masked import masked_log_softmax

__all__ = ["list_kl_loss"]


def list_kl_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
    standardise_teacher: bool = False,
    direction: Literal["forward", "reverse"] = "forward",
    scale_by_temperature_squared: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence in nats, summed over each list, averaged over the queries that have a list.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all. Padding leaves both softmaxes.
        temperature: divides student scores.
        teacher_temperature: divides teacher scores, after standardisation.
        standardise_teacher: subtract each list's mean and divide by its population standard deviation first.
        direction: `forward` = KL(teacher || student), `reverse` = KL(student || teacher).
        scale_by_temperature_squared: multiply by `temperature` squared, Hinton's factor that keeps gradients
            comparable across temperatures; at 0.05 it shrinks the loss 400 times beside other terms.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an
            impossible parameter.
    """
    lists = score_lists("list_kl", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("list_kl", "temperature", temperature)
    require_positive_number("list_kl", "teacher_temperature", teacher_temperature)
    teacher = lists.teacher.to(lists.student.dtype)
    if standardise_teacher:
        teacher = _standardised(teacher, lists.mask)

    log_student = masked_log_softmax(lists.student / temperature, lists.ragged)
    log_teacher = masked_log_softmax(teacher / teacher_temperature, lists.ragged)
    if direction == "forward":
        terms = log_teacher.exp() * (log_teacher - log_student)
    elif direction == "reverse":
        terms = log_student.exp() * (log_student - log_teacher)
    else:
        raise ObjectiveError(f"list_kl: unknown direction {direction!r}")
    loss = terms.sum() / lists.num_lists
    return loss * temperature**2 if scale_by_temperature_squared else loss


def _standardised(teacher: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = teacher.sum(dim=1, keepdim=True) / count
    centred = (teacher - mean).masked_fill(~mask, 0)
    deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    # A tied list has centred scores that are all equal, so whatever they are divided by, its softmax is uniform.
    return centred / deviation.clamp(min=torch.finfo(teacher.dtype).tiny)
