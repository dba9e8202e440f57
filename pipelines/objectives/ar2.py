"""AR2: the retriever moves probability to the negatives that the ranker confuses with the positive.

    p     = softmax(s / temperature) over the negatives of query i (ar2), over all its candidates (ar2_code_compat)
    R_im  = log sigmoid( (t_i,pos - t_im) / teacher_temperature )      <= 0, the ranker's; a constant
    ar2:              L = mean_i sum over negatives m of p_im R_im
    ar2_code_compat:  L = adversarial_weight * sum_i sum_m R_im log(p_im + epsilon)
                          - (1 - adversarial_weight) * mean_i sum_m r_im log(p_im + epsilon)
                      R_im = log(sigmoid(t_i,pos - t_im) + epsilon), r = softmax(t / teacher_temperature)

`ar2` is the paper's adversarial term alone; its gradient p_m (R_m - L) raises negatives that are harder than what the
retriever expects. The paper adds a regulariser, the cross-entropy of the retriever under the ranker over all
candidates, and states no weight between the two: a job adds `list_net` or `list_kl` with the weight it wants. Alone,
the term lets the retriever's entropy collapse. The paper's tau multiplies scores and is 1; `temperature` divides them.

Forms: `ar2_code_compat` is the whole loss of the released code, regulariser included. It sums the adversarial term over
the batch (so its weight grows with the batch) while the regulariser is a mean, weights log p uniformly instead of by p,
counts the positive as one of the documents (its R is log 1/2), and reads the ranker's temperature in r only.

Source: arXiv 2110.03611 (ICLR 2022), equations 9, 10 and 12; official code microsoft/AR2,
`co_training_wiki_train.py`. Where the code divides the retriever's scores by sqrt(D), pass `temperature: sqrt(D)`.

Use when: the teacher is a ranker that trains too, and each round mines with the current retriever. Beside a
regulariser; `ar2_code_compat` only to reproduce the released checkpoints' training.

Reported: Natural Questions R@5, R@20, R@100 69.7, 80.8, 87.1 of the warmed-up retriever, 77.9, 86.0, 90.1 after AR2;
MS MARCO MRR@10 34.8 to 39.5. Without the regulariser NQ R@1 is 57.8 instead of 58.7.

Edges: a query without a positive or without a negative has no adversarial part (0, zero gradient); in
`ar2_code_compat` it keeps its regulariser. One negative has a value but no gradient. A single real candidate adds 0.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number, score_lists
from pipelines.objectives.masked import masked_log_softmax
from pipelines.objectives.positive_column import positive_column

__all__ = ["ar2_code_compat_loss", "ar2_loss"]


def ar2_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    positive: Tensor,
    positives: Tensor | None = None,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """The ranker's log-odds of the positive, expected under the retriever's softmax over the negatives.

    Args:
        student_scores: [queries, candidates], similarities of the retriever before the temperature.
        teacher_scores: [queries, candidates], raw logits of the ranker; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        positive: [queries] int64, the positive's column; -1 = the query has none and is left out. All other real
            columns are its negatives.
        positives: [queries, candidates] bool, further judged positives, which are no negatives; None = none.
        temperature: divides student scores (1 / tau of the paper).
        teacher_temperature: divides the ranker's scores.

    Returns:
        Scalar <= 0, mean over the queries that have a positive.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a positive that is
            padding or outside the list, an impossible parameter.
    """
    lists = score_lists("ar2", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("ar2", "temperature", temperature)
    require_positive_number("ar2", "teacher_temperature", teacher_temperature)
    place = positive_column("ar2", positive, lists.mask, positives)
    teacher = lists.teacher.to(lists.student.dtype)
    reward = functional.logsigmoid((teacher.gather(1, place.index) - teacher) / teacher_temperature)
    log_student = masked_log_softmax(lists.student / temperature, place.negatives)
    terms = log_student.exp() * torch.where(place.negatives, reward, 0)
    return terms.sum() / place.known.sum().clamp(min=1)


def ar2_code_compat_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    positive: Tensor,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
    adversarial_weight: float = 0.5,
    epsilon: float = 1e-7,
) -> Tensor:
    """The released code's retriever loss: adversarial term and regulariser, mixed.

    Args:
        student_scores: [queries, candidates], similarities of the retriever before the temperature.
        teacher_scores: [queries, candidates], raw logits of the ranker; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        positive: [queries] int64, the positive's column; -1 = the query has none and adds its regulariser only.
        temperature: divides student scores; the code has 1, or sqrt(D) with `scale_by_sqrt_dim`.
        teacher_temperature: divides the ranker's scores in the regulariser, not in the reward.
        adversarial_weight: of the adversarial term; the regulariser has one minus it.
        epsilon: added to probabilities inside every logarithm.

    Returns:
        Scalar: the adversarial term is summed over queries, the regulariser averaged over those that have a list.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, a positive that is
            padding or outside the list, an impossible parameter.
    """
    lists = score_lists("ar2_code_compat", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("ar2_code_compat", "temperature", temperature)
    require_positive_number("ar2_code_compat", "teacher_temperature", teacher_temperature)
    if not 0 <= adversarial_weight <= 1:
        raise ObjectiveError(f"ar2_code_compat: adversarial_weight must be in [0, 1], got {adversarial_weight}")
    if not 0 <= epsilon < 1:
        raise ObjectiveError(f"ar2_code_compat: epsilon must be in [0, 1), got {epsilon}")
    place = positive_column("ar2_code_compat", positive, lists.mask)
    listed = lists.mask & (lists.mask.sum(dim=1, keepdim=True) > 1)
    teacher = lists.teacher.to(lists.student.dtype)

    log_student = _plus(masked_log_softmax(lists.student / temperature, listed), epsilon)
    reward = _plus(functional.logsigmoid(teacher.gather(1, place.index) - teacher), epsilon)
    adversarial = torch.where(listed & place.known, reward * log_student, 0).sum()
    ranker = masked_log_softmax(teacher / teacher_temperature, listed).exp()
    imitation = -torch.where(listed, ranker * log_student, 0).sum() / lists.num_lists
    return adversarial_weight * adversarial + (1 - adversarial_weight) * imitation


def _plus(log_probability: Tensor, epsilon: float) -> Tensor:
    """log(probability + epsilon)."""
    if not epsilon:
        return log_probability
    return torch.logaddexp(log_probability, log_probability.new_tensor(math.log(epsilon)))
