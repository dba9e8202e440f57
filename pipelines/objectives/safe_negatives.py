"""Which documents of a batch may be treated as negatives of a query: nothing known or believed to be relevant.

Enters: a checked batch and, where the teacher scored pairs of it, those scores. Leaves: one flag per pair of a query
and a document, or of two queries. A mined list is full of unlabelled positives; the teacher, unlike the labels, has
seen them.
"""

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite, working_dtype
from pipelines.objectives.embedding_batch import EmbeddingBatch

__all__ = ["safe_negatives", "scored_by_teacher", "unrelated_queries"]


def safe_negatives(
    batch: EmbeddingBatch,
    batch_teacher_scores: Tensor | None,
    scored: Tensor | None,
    teacher_margin: float | None,
    *,
    objective: str,
    teacher_threshold: float | None = None,
) -> Tensor:
    """Documents that are not `relevant` and that the teacher does not call relevant either.

    It does so where it scored a pair at or above its own score of the query's positive minus `teacher_margin`, which a
    query without a scored positive cannot say, or at or above the probability `teacher_threshold`. Pairs that the
    teacher did not score are judged by `relevant` alone.

    Args:
        batch: checked embeddings, positives and relevance.
        batch_teacher_scores: [queries, documents] raw teacher logits; None = judge by `relevant` alone.
        scored: [queries, documents] bool, True where `batch_teacher_scores` holds a score.
        teacher_margin: logits below the positive from which on a document counts as relevant, >= 0; None = this
            rule is off.
        objective: name used in error messages.
        teacher_threshold: sigmoid of the logit from which on a document counts as relevant, wherever the positive is;
            None = this rule is off. A teacher trained listwise has no zero, and its sigmoid no meaning.

    Returns:
        bool [queries, documents]; all False for queries without a positive.

    Raises:
        ObjectiveError: one of the two teacher tensors without the other, their shape or dtype, NaN or infinite scores
            where `scored`, a negative or infinite margin, a threshold that is no probability.
    """
    safe = ~batch.relevant & batch.has_positive.unsqueeze(1)
    if teacher_margin is not None and not 0 <= teacher_margin < float("inf"):
        raise ObjectiveError(f"{objective}: teacher_margin must be a finite number >= 0, got {teacher_margin}")
    if teacher_threshold is not None and not 0 <= teacher_threshold <= 1:
        raise ObjectiveError(f"{objective}: teacher_threshold must be a probability, got {teacher_threshold}")
    if batch_teacher_scores is None and scored is None:
        return safe
    teacher, scored = scored_by_teacher(objective, batch, batch_teacher_scores, scored)
    if teacher_threshold is not None:
        # Compared as logits: the sigmoid of a confident teacher rounds to 1.
        bar = float(torch.tensor(teacher_threshold, dtype=torch.float64).logit())
        safe = safe & ~(scored & (teacher >= bar))
    if teacher_margin is not None:
        above = teacher >= teacher.gather(1, batch.positive_column) - teacher_margin
        safe = safe & ~(scored & scored.gather(1, batch.positive_column) & above)
    return safe


def unrelated_queries(batch: EmbeddingBatch) -> Tensor:
    """Pairs of queries with a positive, neither of whose positives is known to be relevant to the other query.

    Returns:
        bool [queries, queries], symmetric, False on the diagonal.
    """
    together = batch.relevant.index_select(1, batch.positive_column.squeeze(1))
    return ~(together | together.T) & batch.has_positive & batch.has_positive.unsqueeze(1)


def scored_by_teacher(
    objective: str, batch: EmbeddingBatch, batch_teacher_scores: Tensor | None, scored: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Checked teacher scores of the batch, constants: at least float32, 0 where not scored; and where they are scored.

    Raises:
        ObjectiveError: one of the two without the other, shape or dtype, NaN or infinite scores where `scored`.
    """
    if batch_teacher_scores is None or scored is None:
        raise ObjectiveError(f"{objective}: batch_teacher_scores and scored come together, one of them is missing")
    require_bool_like(objective, "scored", scored, batch.relevant)
    if batch_teacher_scores.shape != scored.shape or not batch_teacher_scores.is_floating_point():
        raise ObjectiveError(
            f"{objective}: batch_teacher_scores must be floating of shape {tuple(scored.shape)}, "
            f"got {batch_teacher_scores.dtype} of shape {tuple(batch_teacher_scores.shape)}"
        )
    teacher = torch.where(scored, batch_teacher_scores.detach(), 0)
    require_finite(objective, "batch_teacher_scores", teacher)
    return teacher.to(working_dtype(teacher)), scored
