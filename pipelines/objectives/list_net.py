"""ListNet: cross-entropy of the student's softmax over a list under the teacher's.

    p = softmax(t / teacher_temperature)      q = softmax(s / temperature)      over the real candidates
    L = - mean_i sum_j p_ij log q_ij

The list KL plus the teacher's entropy, a constant of the student: the same gradient, another value. So it is never 0
when the teacher is unsure, and its curve compares with published ones of the libraries that report cross-entropy.
`temperature: 1` is their convention for raw scores.

Source: Cao et al., ICML 2007, top-one probabilities; equal to `ListNetLoss` of sentence-transformers, `kl_div` of
FlagEmbedding's `distill_loss` (which is this cross-entropy), and, with both directions averaged, `DistillClipLoss` of
open_clip. allRank adds 1e-10 inside the logarithm: `epsilon`.

Use when: as `list_kl`; choose it where a value that compares with sentence-transformers, FlagEmbedding or open_clip is
wanted. With `ar2` it is the paper's regulariser.

Reported: no number of the paper could be read.

Edges: a query with one real candidate adds 0 with zero gradient; one with none is not counted in the mean. The gradient
of every row sums to zero.
"""

import math

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.masked import masked_log_softmax, zero_probability_logit

__all__ = ["list_net_loss"]


def list_net_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
    epsilon: float = 0.0,
) -> Tensor:
    """Cross-entropy in nats, summed over each list, averaged over the queries that have a list.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all. Padding leaves both softmaxes.
        temperature: divides student scores.
        teacher_temperature: divides teacher scores.
        epsilon: added to the student's probabilities inside the logarithm, as allRank does with 1e-10; it cuts the
            gradient of candidates that are less probable than that.

    Returns:
        Scalar >= 0 (with `epsilon`, >= -epsilon).

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    lists = score_lists("list_net", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("list_net", "temperature", temperature)
    require_positive_number("list_net", "teacher_temperature", teacher_temperature)
    if not 0 <= epsilon < 1:
        raise ObjectiveError(f"list_net: epsilon must be in [0, 1), got {epsilon}")
    log_student = masked_log_softmax(lists.student / temperature, lists.ragged)
    if epsilon:
        log_student = torch.logaddexp(log_student, log_student.new_tensor(math.log(epsilon)))
        log_student = torch.where(lists.mask, log_student, 0)
    teacher = lists.teacher.to(lists.student.dtype) / teacher_temperature
    if lists.ragged is not None:
        teacher = torch.where(lists.ragged, teacher, zero_probability_logit(teacher.dtype))
    return -(teacher.softmax(dim=1) * log_student).sum() / lists.num_lists
