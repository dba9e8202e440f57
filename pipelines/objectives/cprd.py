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
    working_dtype,
)
from pipelines.objectives.cprd_validity import ValidityRules, best_score, margin_reference, valid_prefix
from pipelines.objectives.embedding_batch import similarities
from pipelines.objectives.masked import teacher_order, zero_probability_logit
from pipelines.objectives.plackett_luce import draw_costs

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
        queue_embeddings: [queue, dimensions], a momentum queue of documents: constants and negatives of every query,
            but not of the reverse direction's documents. No step of a job offers it.
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
    require_positive_number("cprd", "temperature", temperature)
    rules = ValidityRules(valid_threshold, valid_margin, max_valid)
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
    reference = margin_reference(lists.teacher, lists.mask, positive)
    forward = _Lists(lists.student / temperature, lists.teacher, listed, listed & given, reference, lists.mask, easy)
    loss = _cost(forward, rules, reduction)
    if batch is None or directions == "query_to_document":
        return loss
    return loss + _cost(_reverse_lists(batch, temperature, easy_negatives=easy_negatives), rules, reduction)


@dataclass(frozen=True)
class _Lists:
    """Lists of one direction, all [lists, candidates] but `reference` [lists, 1] and the easy negatives' logits."""

    logits: Tensor
    teacher: Tensor
    listed: Tensor
    may_be_valid: Tensor
    reference: Tensor
    counted: Tensor
    easy: list[Tensor]


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
    if relevant is None:
        relevant = torch.zeros_like(scored)
    for label, flags in (("scored", scored), ("relevant", relevant)):
        require_bool_like("cprd", label, flags, student)
    if teacher.shape != student.shape:
        raise ObjectiveError(
            f"cprd: batch_scores {tuple(student.shape)} and batch_teacher_scores {tuple(teacher.shape)} must have "
            "one shape"
        )
    teacher = teacher.detach().masked_fill(~scored, 0)
    require_finite("cprd", "batch_scores", student)
    require_finite("cprd", "batch_teacher_scores", teacher)
    return _ScoredBatch(student.to(working_dtype(student)), teacher, scored, relevant)


def _reverse_lists(batch: _ScoredBatch, temperature: float, *, easy_negatives: bool) -> _Lists:
    """The batch's documents, each with the queries that the teacher scored with it."""
    student, teacher = batch.student.T, batch.teacher.T
    listed, known = (batch.scored & ~batch.relevant).T, (batch.scored & batch.relevant).T
    reference = best_score(teacher, torch.where(known.any(dim=1, keepdim=True), known, listed))
    easy = [_logits(student, ~(batch.scored | batch.relevant).T, temperature)] if easy_negatives else []
    return _Lists(student / temperature, teacher, listed, listed, reference, listed, easy)


def _cost(lists: _Lists, rules: ValidityRules, reduction: Reduction) -> Tensor:
    order = teacher_order(lists.teacher, lists.listed)
    in_prefix = valid_prefix(lists.teacher, lists.may_be_valid, order, lists.reference, rules)
    rivals = torch.cat(lists.easy, dim=1) if lists.easy else None
    total = torch.where(in_prefix, draw_costs(lists.logits, order, lists.listed, rivals), 0).sum()
    match reduction:
        case "mean_over_terms":
            # A list of one without easy negatives ranks nothing, and counts for nothing.
            ranks = lists.listed.sum(dim=1, keepdim=True) > 1
            if rivals is not None:
                ranks = ranks | (rivals > zero_probability_logit(rivals.dtype)).any(dim=1, keepdim=True)
            return total / (in_prefix & ranks).sum().clamp(min=1)
        case "sum_over_positions_mean_over_queries":
            return total / lists.counted.any(dim=1).sum().clamp(min=1)
        case "sum":
            return total
    raise ObjectiveError(f"cprd: unknown reduction {reduction!r}")


def _logits(scores: Tensor, listed: Tensor, temperature: float) -> Tensor:
    logits = scores / temperature
    return logits.masked_fill(~listed, zero_probability_logit(logits.dtype))


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
