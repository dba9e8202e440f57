"""RocketQAv2 dynamic listwise distillation: retriever and ranker learn together, each from the other's softmax.

    q = softmax(s / temperature) of the retriever      p = softmax(t / teacher_temperature) of the ranker
    paper:  L = mean_i sum_j q_ij (log q_ij - log p_ij) - mean_i log p_i,pos      gradients to both
    code:   L = mean over all (i, j) of p_ij (log p_ij - log q_ij) - mean_i log p_i,pos

The cross-entropy keeps the ranker honest while the divergence pulls the two towards each other. It does not contain
the retriever: with teacher scores that are stored, as in every job whose teacher stands still, only the divergence
moves the student, and the cross-entropy is a constant in the loss.

Forms: `paper` is KL(retriever || ranker), summed over the list, with gradient to both. `code` is KL(ranker ||
retriever), averaged over all cells (so K times smaller at lists of K), and the divergence gives the ranker no gradient.

Source: arXiv 2110.07367 (EMNLP 2021); official code PaddlePaddle/RocketQA, re-expressed without running Paddle. The
paper's text could not be read: its equation is from general knowledge.

Use when: ranker and retriever train in one graph. With stored teacher scores `list_kl` is the same pull (`direction:
reverse` for `paper`) without a constant in its curve.

Reported: MS MARCO MRR@10 38.8, R@50 86.2, R@1000 98.1, its re-ranker 41.9; Natural Questions R@5 75.1, R@20 83.7, R@100
89.0.

Edges: a query without a positive adds its divergence and no cross-entropy; one with a single real candidate adds 0 with
zero gradient; one with none is not counted in the mean.
"""

from typing import Literal

from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.masked import masked_log_softmax
from pipelines.objectives.positive_column import positive_column

__all__ = ["rocketqa_v2_loss"]


def rocketqa_v2_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    positive: Tensor,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
    form: Literal["paper", "code"] = "paper",
) -> Tensor:
    """Divergence between retriever and ranker plus the ranker's own cross-entropy, both means over queries.

    With stored teacher scores only the divergence moves the student.

    Args:
        student_scores: [queries, candidates], the retriever's similarities before the temperature.
        teacher_scores: [queries, candidates], the ranker's raw logits; receives a gradient if it wants one.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        positive: [queries] int64, the positive's column; -1 = the query has none and adds no cross-entropy.
        temperature: divides student scores.
        teacher_temperature: divides teacher scores, in both terms.
        form: `paper` or `code`, see above.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a positive that is
            padding or outside the list, an impossible parameter.
    """
    lists = score_lists("rocketqa_v2", student_scores, teacher_scores, mask, min_width=2, teacher_learns=True)
    require_positive_number("rocketqa_v2", "temperature", temperature)
    require_positive_number("rocketqa_v2", "teacher_temperature", teacher_temperature)
    place = positive_column("rocketqa_v2", positive, lists.mask)
    log_student = masked_log_softmax(lists.student / temperature, lists.ragged)
    log_teacher = masked_log_softmax(lists.teacher.to(log_student.dtype) / teacher_temperature, lists.ragged)
    if form == "paper":
        divergence = (log_student.exp() * (log_student - log_teacher)).sum() / lists.num_lists
    elif form == "code":
        target = log_teacher.detach()
        divergence = (target.exp() * (target - log_student)).sum() / lists.mask.sum().clamp(min=1)
    else:
        raise ObjectiveError(f"rocketqa_v2: unknown form {form!r}")
    right = log_teacher.gather(1, place.index).masked_fill(~place.known, 0)
    return divergence - right.sum() / place.known.sum().clamp(min=1)
