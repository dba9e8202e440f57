"""CPRD, contrastive partial ranking distillation: learn the teacher's order of the valid hard negatives.

    c_i = candidates of query i without its judged positives, sorted by teacher score, best first
    J_i = length of the leading run of valid candidates in c_i
    L   = - sum_i sum_{j < J_i} log( exp(s_i,c_ij / temperature) / sum_{k >= j} exp(s_i,c_ik / temperature) )

Each valid candidate is the positive of a softmax whose negatives are all candidates that the teacher puts
below it, the invalid tail included: a Plackett-Luce likelihood cut off after the valid prefix. The teacher
enters through its order alone, so any strictly increasing transform of its scores gives the same loss and
gradient (as long as validity is a count and not a threshold on its scores).

Source: arXiv 2407.07479 (CVPR 2024), through a secondary source that quotes the formula. The temperature
(needed for unit-length embeddings) and the validity rules are dualdistill's: the paper's could not be read.

Edges: no valid candidate, an empty list or a single candidate gives 0 with zero gradient. Ties keep the
column order.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import (
    require_bool_like,
    require_positive_number,
    score_lists,
    zero_probability_logit,
)

__all__ = ["cprd_loss"]


def cprd_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    positives: Tensor | None = None,
    valid: Tensor | None = None,
    temperature: float = 0.05,
    valid_threshold: float | None = None,
    max_valid: int | None = None,
    reduction: Literal["sum_over_positions_mean_over_queries", "mean_over_terms", "sum"] = "mean_over_terms",
) -> Tensor:
    """Negative log-likelihood of the teacher's order of the valid candidates under the student's scores.

    A candidate is valid when every rule that is given says so; with none given all are.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        positives: [queries, candidates] bool, judged positives; left out of the list, denominators included.
            None leaves nothing out.
        valid: [queries, candidates] bool, a validity the caller already knows; None = no such rule.
        temperature: divides student scores.
        valid_threshold: valid when sigmoid(teacher score) is above it: the teacher's probability that the
            candidate is relevant, if it was trained with a binary loss.
        max_valid: only the teacher's first `max_valid` candidates are valid.
        reduction: `mean_over_terms` divides by the number of ranked positions in the batch (sum of J_i), so
            long prefixes do not weigh more; `sum_over_positions_mean_over_queries` divides by the number of
            queries with at least one real candidate; `sum` is the paper's form.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, NaN or infinite scores, an impossible parameter.
    """
    lists = score_lists("cprd", student_scores, teacher_scores, mask, min_width=1)
    require_positive_number("cprd", "temperature", temperature)
    listed = lists.mask
    if positives is not None:
        require_bool_like("cprd", "positives", positives, student_scores)
        listed = listed & ~positives

    unlisted_last = lists.teacher.masked_fill(~listed, -torch.inf)
    order = unlisted_last.argsort(dim=1, descending=True, stable=True)
    is_valid = listed & _validity(lists.teacher, valid, valid_threshold)
    in_prefix = is_valid.gather(1, order).long().cumprod(dim=1).bool()
    if max_valid is not None:
        if max_valid < 1:
            raise ObjectiveError(f"cprd: max_valid must be at least 1, got {max_valid}")
        in_prefix[:, max_valid:] = False

    logits = lists.student / temperature
    logits = logits.masked_fill(~listed, zero_probability_logit(logits.dtype)).gather(1, order)
    log_tail = logits.flip(1).logcumsumexp(dim=1).flip(1)
    # The last candidate of a list beats nobody: log 1, which autograd would miss by 1e-7.
    beats_somebody = torch.arange(logits.shape[1], device=logits.device) < listed.sum(1, keepdim=True) - 1
    total = torch.where(in_prefix & beats_somebody, log_tail - logits, 0).sum()
    match reduction:
        case "mean_over_terms":
            return total / in_prefix.sum().clamp(min=1)
        case "sum_over_positions_mean_over_queries":
            return total / lists.mask.any(dim=1).sum().clamp(min=1)
        case "sum":
            return total
    raise ObjectiveError(f"cprd: unknown reduction {reduction!r}")


def _validity(teacher: Tensor, valid: Tensor | None, valid_threshold: float | None) -> Tensor:
    flags = torch.ones_like(teacher, dtype=torch.bool)
    if valid is not None:
        require_bool_like("cprd", "valid", valid, teacher)
        flags = flags & valid
    if valid_threshold is not None:
        if not 0 <= valid_threshold <= 1:
            raise ObjectiveError(f"cprd: valid_threshold must be a probability, got {valid_threshold}")
        # Compared as logits: the sigmoid of a confident teacher rounds to 1 and would pass or fail by
        # rounding.
        flags = flags & (teacher > _logit(valid_threshold))
    return flags


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability) - math.log1p(-probability)
