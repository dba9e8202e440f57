"""CPRD, contrastive partial ranking distillation: learn the teacher's order of the valid hard negatives.

    c_i = candidates of query i without its judged positives, sorted by teacher score, best first
    J_i = length of the leading run of valid candidates in c_i
    L   = - sum_i sum_{j < J_i} log( exp(s_i,c_ij / temperature) / sum_{k >= j} exp(s_i,c_ik / temperature) )

Each valid candidate is the positive of a softmax whose negatives are all candidates that the teacher puts
below it, the invalid tail included: a Plackett-Luce likelihood cut off after the valid prefix. The teacher
enters through its order alone, so any strictly increasing transform of its scores gives the same loss and
gradient (as long as validity is a count: a threshold and a margin read the teacher's scale). Easy negatives, in-batch
documents or a momentum queue's, may join every denominator; nothing is learned about the order among them.
Image-text uses both directions: documents rank the queries that the teacher scored with them in the same way.

Source: arXiv 2407.07479 (CVPR 2024), through a secondary source that quotes the formula. The temperature
(needed for unit-length embeddings), the validity rules and the easy negatives are dualdistill's readings: the
paper's text could not be read and no official code is known.

Use when: the teacher is saturated or on another scale than the student, so that its values transfer badly but its
order is right; beside `info_nce`, which places the positive. Without `max_valid`, `valid_margin` or `valid_threshold`
nothing cuts the list and it is ListMLE over all that was mined: give one when lists are long and reach into easy
negatives. The default reduction is a mean over ranked positions; the paper's is `sum`.

Reported: image-text similarity on Crisscrossed Captions (Spearman against humans) 61.8 for a dual encoder, 65.1 after
COCO fine-tuning, its teacher 67.3 and 69.4; said to beat other distillation methods on COCO and Flickr30K, whose
tables could not be read.

Edges: no valid candidate, an empty list or a single candidate gives 0 with zero gradient. Ties keep the
column order.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import (
    require_bool_like,
    require_finite,
    require_indices,
    require_positive_number,
    score_lists,
)
from pipelines.objectives.embedding_batch import similarities
from pipelines.objectives.masked import teacher_order, zero_probability_logit

__all__ = ["cprd_loss"]

Reduction = Literal["sum_over_positions_mean_over_queries", "mean_over_terms", "sum"]


def cprd_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    positives: Tensor | None = None,
    positive: Tensor | None = None,
    valid: Tensor | None = None,
    batch_scores: Tensor | None = None,
    batch_teacher_scores: Tensor | None = None,
    scored: Tensor | None = None,
    relevant: Tensor | None = None,
    query_embeddings: Tensor | None = None,
    queue_embeddings: Tensor | None = None,
    temperature: float = 0.05,
    valid_threshold: float | None = None,
    valid_margin: float | None = None,
    max_valid: int | None = None,
    directions: Literal["query_to_document", "both"] = "query_to_document",
    easy_negatives: bool = False,
    reduction: Reduction = "mean_over_terms",
) -> Tensor:
    """Negative log-likelihood of the teacher's order of the valid candidates under the student's scores.

    A candidate is valid when every rule that is given says so; with none given all are.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        positives: [queries, candidates] bool, judged positives; left out of the list, denominators included.
            None leaves nothing out.
        positive: [queries] int64, column from which `valid_margin` is measured, -1 = the teacher's best candidate.
        valid: [queries, candidates] bool, a validity the caller already knows; None = no such rule. No step of a job
            offers it.
        batch_scores: [queries, documents], the student's similarities with the batch; for `easy_negatives` and
            `directions: both`.
        batch_teacher_scores: [queries, documents], raw teacher logits; for `directions: both`.
        scored: [queries, documents] bool, pairs the teacher scored: easy negatives and reverse lists follow it.
        relevant: [queries, documents] bool, pairs that are no negatives.
        query_embeddings: [queries, dimensions], for the queue only.
        queue_embeddings: [queue, dimensions], a momentum queue of documents: constants and negatives of every query (not
            of the reverse direction's documents). No step of a job offers it.
        temperature: divides student scores.
        valid_threshold: valid when sigmoid(teacher score) is above it: the teacher's probability that the
            candidate is relevant, if it was trained with a binary loss.
        valid_margin: valid when the teacher puts the candidate less than this many logits below the positive (in the
            reverse direction: the best query known to be relevant), or below its best where there is none.
        max_valid: only the teacher's first `max_valid` candidates are valid.
        directions: `both` adds the lists of queries that documents of the batch rank (image-text).
        easy_negatives: put the batch's other documents into every denominator.
        reduction: `mean_over_terms` divides by the number of ranked positions in the batch (sum of J_i), so
            long prefixes do not weigh more; `sum_over_positions_mean_over_queries` divides by the number of
            queries with at least one real candidate; `sum` is the paper's form.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, NaN or infinite scores, an impossible parameter, a tensor missing
            that an option needs.
    """
    lists = score_lists("cprd", student_scores, teacher_scores, mask, min_width=1)
    rules = _Rules(temperature, valid_threshold, valid_margin, max_valid, reduction)
    if directions not in ("query_to_document", "both"):
        raise ObjectiveError(f"cprd: unknown directions {directions!r}")
    listed = lists.mask
    if positives is not None:
        require_bool_like("cprd", "positives", positives, student_scores)
        listed = listed & ~positives
    if positive is not None:
        require_indices("cprd", "positive", positive, rows=len(listed), width=listed.shape[1])
    given = torch.ones_like(listed)
    if valid is not None:
        require_bool_like("cprd", "valid", valid, student_scores)
        given = valid

    batch = None
    if easy_negatives or directions == "both":
        batch = _scored_batch(batch_scores, batch_teacher_scores, scored, relevant)
    easy: list[Tensor] = []
    if batch is not None and easy_negatives:
        easy.append(_logits(batch.student, ~(batch.scored | batch.relevant), temperature))
    if queue_embeddings is not None:
        easy.append(_queue_scores(query_embeddings, queue_embeddings, lists.student) / temperature)
    reference = _margin_reference(lists.teacher, lists.mask, positive)
    loss = _ranked(lists.student, lists.teacher, listed, lists.mask, given, reference, easy, rules)
    if batch is None or directions == "query_to_document":
        return loss

    listed = (batch.scored & ~batch.relevant).T
    student, teacher = batch.student.T, batch.teacher.T
    easy = [_logits(student, ~(batch.scored | batch.relevant).T, temperature)] if easy_negatives else []
    known = (batch.scored & batch.relevant).T
    reference = _best(teacher, torch.where(known.any(dim=1, keepdim=True), known, listed))
    return loss + _ranked(student, teacher, listed, listed, torch.ones_like(listed), reference, easy, rules)


@dataclass(frozen=True)
class _Rules:
    temperature: float
    valid_threshold: float | None
    valid_margin: float | None
    max_valid: int | None
    reduction: Reduction

    def __post_init__(self) -> None:
        require_positive_number("cprd", "temperature", self.temperature)
        if self.valid_threshold is not None and not 0 <= self.valid_threshold <= 1:
            raise ObjectiveError(f"cprd: valid_threshold must be a probability, got {self.valid_threshold}")
        if self.valid_margin is not None:
            require_positive_number("cprd", "valid_margin", self.valid_margin)
        if self.max_valid is not None and self.max_valid < 1:
            raise ObjectiveError(f"cprd: max_valid must be at least 1, got {self.max_valid}")


@dataclass(frozen=True)
class _ScoredBatch:
    student: Tensor
    teacher: Tensor
    scored: Tensor
    relevant: Tensor


def _scored_batch(
    student: Tensor | None, teacher: Tensor | None, scored: Tensor | None, relevant: Tensor | None
) -> _ScoredBatch:
    if student is None or scored is None or teacher is None:
        raise ObjectiveError(
            "cprd: easy_negatives and directions 'both' need batch_scores, batch_teacher_scores and scored"
        )
    lists = score_lists("cprd", student, teacher.masked_fill(~scored, 0), None, min_width=1)
    require_bool_like("cprd", "scored", scored, student)
    if relevant is None:
        relevant = torch.zeros_like(scored)
    require_bool_like("cprd", "relevant", relevant, student)
    return _ScoredBatch(lists.student, lists.teacher, scored, relevant)


def _ranked(
    student: Tensor,
    teacher: Tensor,
    listed: Tensor,
    counted: Tensor,
    given: Tensor,
    reference: Tensor,
    easy: list[Tensor],
    rules: _Rules,
) -> Tensor:
    order = teacher_order(teacher, listed)
    is_valid = listed & given & _validity(teacher, reference, rules)
    in_prefix = is_valid.gather(1, order).long().cumprod(dim=1).bool()
    if rules.max_valid is not None:
        in_prefix[:, rules.max_valid :] = False

    logits = _logits(student, listed, rules.temperature).gather(1, order)
    log_tail = logits.flip(1).logcumsumexp(dim=1).flip(1)
    # The last candidate of a list beats nobody: log 1, which autograd would miss by 1e-7.
    contested = torch.arange(logits.shape[1], device=logits.device) < listed.sum(1, keepdim=True) - 1
    if easy:
        pushed_down = torch.cat(easy, dim=1)
        log_tail = torch.logaddexp(log_tail, pushed_down.logsumexp(dim=1, keepdim=True))
        contested = contested | (pushed_down > zero_probability_logit(logits.dtype)).any(dim=1, keepdim=True)
    in_prefix = in_prefix & contested.any(dim=1, keepdim=True)  # a list of one ranks nothing and counts for nothing
    total = torch.where(in_prefix & contested, log_tail - logits, 0).sum()
    match rules.reduction:
        case "mean_over_terms":
            return total / in_prefix.sum().clamp(min=1)
        case "sum_over_positions_mean_over_queries":
            return total / counted.any(dim=1).sum().clamp(min=1)
        case "sum":
            return total
    raise ObjectiveError(f"cprd: unknown reduction {rules.reduction!r}")


def _logits(scores: Tensor, listed: Tensor, temperature: float) -> Tensor:
    logits = scores / temperature
    return logits.masked_fill(~listed, zero_probability_logit(logits.dtype))


def _validity(teacher: Tensor, reference: Tensor, rules: _Rules) -> Tensor:
    flags = torch.ones_like(teacher, dtype=torch.bool)
    if rules.valid_threshold is not None:
        # Compared as logits: the sigmoid of a confident teacher rounds to 1 and would pass or fail by
        # rounding.
        flags = flags & (teacher > _logit(rules.valid_threshold))
    if rules.valid_margin is not None:
        flags = flags & (teacher > reference - rules.valid_margin)
    return flags


def _margin_reference(teacher: Tensor, listed: Tensor, positive: Tensor | None) -> Tensor:
    """[rows, 1]: the teacher's score of the positive, or of its best candidate where there is none."""
    best = _best(teacher, listed)
    if positive is None:
        return best
    return torch.where(positive.unsqueeze(1) >= 0, teacher.gather(1, positive.clamp(min=0).unsqueeze(1)), best)


def _best(teacher: Tensor, among: Tensor) -> Tensor:
    return teacher.masked_fill(~among, -torch.inf).amax(dim=1, keepdim=True)


def _queue_scores(queries: Tensor | None, queue: Tensor, student: Tensor) -> Tensor:
    if queries is None:
        raise ObjectiveError("cprd: queue_embeddings need query_embeddings")
    if queries.ndim != 2 or queue.ndim != 2 or queries.shape != (len(student), queue.shape[1]) or not len(queue):
        raise ObjectiveError(
            f"cprd: query_embeddings {tuple(queries.shape)} and queue_embeddings {tuple(queue.shape)} must be "
            f"[{len(student)} queries, dimensions] and [queue, dimensions]"
        )
    require_finite("cprd", "query_embeddings", queries)
    require_finite("cprd", "queue_embeddings", queue)
    return similarities(queries.to(student.dtype), queue.detach().to(student.dtype))


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability) - math.log1p(-probability)
