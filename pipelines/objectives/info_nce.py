"""InfoNCE: each query's positive against every other document of the batch, and in more directions if asked.

    query_to_document:     Z_i = sum over documents d of exp(q_i.d / temperature)
    document_to_query:     Z_i = sum over queries j of exp(q_j.d_i+ / temperature)
    query_to_query:        Z_i = sum over other queries j of exp(q_i.q_j / temperature)
    document_to_document:  Z_i = sum over documents d of other queries of exp(d_i+.d / temperature)
    L = mean over queries i with a positive d_i+ of  log(sum of the directions' Z_i) - q_i.d_i+ / temperature

`partition: joint` is that single softmax; `per_direction` averages the directions' own log Z_i instead, so that both
directions of pairs are CLIP's loss. No sum contains what is known to be `relevant` (a query's other positives, copies
of their text; a query that shares the positive or has the same text) nor, with `teacher_margin`, what the teacher
scored at least as high as its score of the positive minus the margin: mined lists are full of unlabelled positives.
Hardness adds `hardness_strength` times the similarity, as a constant, to negatives' logits: those of the query's own
list, all others, or both.

Source: arXiv 1807.03748; the official code compared with is sentence-transformers' `MultipleNegativesRankingLoss`
(all directions, partitions and hardness; `scale = 1 / temperature`), open_clip's `ClipLoss` and GradCache's
`SimpleContrastiveLoss`. Masking by the teacher's score is GISTEmbed's idea (arXiv 2402.16829) with a cross-encoder.

Use when: there are positives, labelled or the teacher's own: it is the term that places them, and the list objectives
refine it. Give it many documents; with a teacher at hand set `teacher_margin` to 0 or a little more.

Reported: no number of the papers was read; it is the objective of CLIP and of most dense retrievers, and the baseline
in other objectives' tables.

Edges: a query without a positive is left out, but serves as a negative; a batch of those is 0 with zero gradient. A
query with no negative left adds 0, and so does a direction in which it has none. With `per_direction` the last two
directions' sums lack the positive, so the loss may be negative.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_positive_number
from pipelines.objectives.embedding_batch import EmbeddingBatch, embedding_batch
from pipelines.objectives.partition import Direction, Partition, cross_entropies, direction_partition, joined
from pipelines.objectives.safe_negatives import safe_negatives

__all__ = ["info_nce_loss"]

Hardness = Literal["none", "hard_negatives", "in_batch_negatives", "all_negatives"]


def info_nce_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    batch_teacher_scores: Tensor | None = None,
    scored: Tensor | None = None,
    temperature: float | Tensor = 0.05,
    directions: Sequence[Direction] = ("query_to_document",),
    partition: Literal["joint", "per_direction"] = "joint",
    label_smoothing: float = 0.0,
    teacher_margin: float | None = None,
    hardness_mode: Hardness = "none",
    hardness_strength: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy of the positive pair, averaged over the queries that have one.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only its
            positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that they are no
            negatives of each other; None = all texts differ.
        batch_teacher_scores: [queries, documents], raw teacher logits where `scored`; for `teacher_margin`.
        scored: [queries, documents] bool, pairs the teacher scored: the query's own list, which tells its hard
            negatives from those in the batch, and which `document_to_document` leaves out.
        temperature: divides the dot products; a 0-dim tensor receives a gradient.
        directions: which sums stand in the denominator; `query_to_document` must be among them.
        partition: one softmax over all directions, or the mean of one per direction.
        label_smoothing: share of the target in [0, 1) that is spread evenly over the candidates of a softmax.
        teacher_margin: logits below its score of the positive from which on the teacher's word makes a document no
            negative; None = the teacher is not asked.
        hardness_mode: which negatives of the first direction get a constant on top of their logit.
        hardness_strength: how much of their similarity, before the temperature.

    Returns:
        Scalar.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive out
            of range, an impossible parameter, a tensor missing that an option needs.
    """
    batch = embedding_batch("info_nce", query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number("info_nce", "temperature", temperature)
    _check_options(directions, partition, label_smoothing, hardness_mode, hardness_strength, scored)
    if scored is not None:
        require_bool_like("info_nce", "scored", scored, batch.relevant)
    known = _known_relevant(batch, batch_teacher_scores, scored, teacher_margin)

    ordered = [direction for direction in get_args(Direction) if direction in directions]
    parts = [direction_partition(direction, batch, known, scored, temperature) for direction in ordered]
    if hardness_mode != "none" and hardness_strength > 0:
        parts[0] = _hardened(parts[0], known, scored, hardness_mode, temperature, hardness_strength)
    positive_logits = parts[0].logits.gather(1, batch.positive_column).squeeze(1)
    if partition == "joint":
        parts = [joined(parts)]
    rows = torch.stack([cross_entropies(part, positive_logits, label_smoothing) for part in parts]).mean(dim=0)
    return rows.masked_fill(~batch.has_positive, 0).sum() / batch.has_positive.sum().clamp(min=1)


def _check_options(
    directions: Sequence[Direction],
    partition: str,
    label_smoothing: float,
    hardness_mode: str,
    hardness_strength: float,
    scored: Tensor | None,
) -> None:
    known = get_args(Direction)
    if (
        "query_to_document" not in directions
        or len(set(directions)) < len(directions)
        or not set(directions) <= {*known}
    ):
        raise ObjectiveError(f"info_nce: directions must be query_to_document and others of {known}, got {directions}")
    if partition not in ("joint", "per_direction"):
        raise ObjectiveError(f"info_nce: unknown partition {partition!r}")
    if not 0 <= label_smoothing < 1:
        raise ObjectiveError(f"info_nce: label_smoothing must be in [0, 1), got {label_smoothing}")
    if hardness_mode not in get_args(Hardness):
        raise ObjectiveError(f"info_nce: unknown hardness_mode {hardness_mode!r}")
    if not 0 <= hardness_strength < float("inf"):
        raise ObjectiveError(f"info_nce: hardness_strength must be a finite number >= 0, got {hardness_strength}")
    if hardness_strength > 0 and hardness_mode == "none":
        raise ObjectiveError(
            f"info_nce: hardness_strength {hardness_strength} is without effect: hardness_mode is none"
        )
    if hardness_mode in ("hard_negatives", "in_batch_negatives") and scored is None:
        raise ObjectiveError(f"info_nce: hardness_mode {hardness_mode} needs scored, the pairs of a query's own list")


def _known_relevant(
    batch: EmbeddingBatch, batch_teacher_scores: Tensor | None, scored: Tensor | None, teacher_margin: float | None
) -> Tensor:
    """[queries, documents] bool: pairs that are no negatives, by label or by the teacher's word."""
    if teacher_margin is None:
        return batch.relevant
    if batch_teacher_scores is None or scored is None:
        raise ObjectiveError("info_nce: teacher_margin needs batch_teacher_scores and scored")
    safe = safe_negatives(batch, batch_teacher_scores, scored, teacher_margin, objective="info_nce")
    return torch.where(batch.has_positive.unsqueeze(1), ~safe, batch.relevant)


def _hardened(
    part: Partition,
    relevant: Tensor,
    own: Tensor | None,
    mode: Hardness,
    temperature: float | Tensor,
    strength: float,
) -> Partition:
    chosen = ~relevant
    if own is not None and mode != "all_negatives":
        chosen = chosen & (own if mode == "hard_negatives" else ~own)
    similarity = (part.logits * temperature).detach().masked_fill(~chosen, 0)
    return Partition(part.logits + strength * similarity, part.left_out, part.target)
