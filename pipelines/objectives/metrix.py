"""Metrix: a mixture of positive and hard negative is a document as relevant as its share of the positive.

    z    = lam d+ + (1 - lam) n ,  lam in Beta(concentration, concentration)
    dist = | q / |q| - z / |z| |
    L    = mean of lam relu(dist - positive_margin)  +  mean of (1 - lam) relu(negative_margin - dist)

over the queries q with a positive d+ and their `hardest` negatives n, nearest first; each of the two means runs over
its own terms that are above 0. A negative is a document of the batch that is neither known to be relevant nor called so
by the teacher, which does it from its score of the positive minus `teacher_margin` on, and from the probability
`teacher_threshold` on. Where teacher scores are given, only pairs that have one are mixed. A teacher trained listwise
has no zero, so that its sigmoid is no probability (this project's own `teacher.train` is one): set
`teacher_threshold: null` for it. Gradient reaches query, positive and negative.
The official total is clean + 0.4 mixed (0.3 for pairs of anchor and negative), where the clean term is the contrastive
loss without mixtures: here that is the job's own contrastive term, and `weight: 0.4` belongs to this one.
Forms: `draws` is one lam per `batch`, as in the official code, or one per `pair`; which of them the paper means could
not be read.

Source: arXiv 2106.04990 (ICLR 2022), official code billpsomas/Metrix_ICLR22 (embedding mixup, contrastive), with the
distance and the non-zero mean of pytorch-metric-learning re-expressed. The paper's text could not be read.

Use when: beside `info_nce` at a weight of 0.4, to give the space between positives and hard negatives a meaning. Not
alone: by itself it pulls negatives towards the query as well.

Reported: no number of the paper could be read.

Edges: a query without a positive or without a negative to mix adds nothing; a batch of those is 0 with zero gradient. A
mixture that is exactly the query has distance 0 and no gradient. Draws come from torch's CPU generator, which
checkpoints save.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite, require_positive_number
from pipelines.objectives.embedding_batch import embedding_batch, similarities
from pipelines.objectives.mixtures import hardest_negatives
from pipelines.objectives.safe_negatives import safe_negatives

__all__ = ["MixedPairs", "metrix_loss", "mixed_pairs", "non_zero_mean"]


@dataclass(frozen=True)
class MixedPairs:
    """What each (anchor, positive, negative) contributes, all of the same shape.

    Attributes:
        distances: between anchor and mixture, both of unit length.
        positive_terms: lam relu(distance - positive_margin).
        negative_terms: (1 - lam) relu(negative_margin - distance).
    """

    distances: Tensor
    positive_terms: Tensor
    negative_terms: Tensor


def metrix_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    batch_teacher_scores: Tensor | None = None,
    scored: Tensor | None = None,
    mixing: Tensor | None = None,
    hardest: int = 1,
    positive_margin: float = 0.0,
    negative_margin: float = 0.5,
    concentration: float = 2.0,
    draws: Literal["batch", "pair"] = "batch",
    teacher_margin: float | None = 0.0,
    teacher_threshold: float | None = 0.5,
) -> Tensor:
    """Contrastive pair loss on mixtures of each query's positive with its hardest negatives.

    Args:
        query_embeddings: [queries, dimensions]; divided by their length here.
        document_embeddings: [documents, dimensions], in any order; mixed as given, mixtures divided by their length.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that are no negatives of that query; None = only its positive.
        batch_teacher_scores: [queries, documents] raw teacher logits, constants; None = no teacher to ask.
        scored: [queries, documents] bool, pairs the teacher scored; only those are mixed. None = all negatives are.
        mixing: the positive's share lam in [0, 1], one number or [queries, hardest]; None = drawn. Library only: no
            step of a job offers it.
        hardest: how many of a query's nearest negatives are mixed with its positive.
        positive_margin: distance below which a mixture is near enough.
        negative_margin: distance above which a mixture is far enough.
        concentration: both parameters of the Beta distribution of lam.
        draws: one lam per `batch` or per `pair`.
        teacher_margin: logits below the positive from which on the teacher calls a document relevant; None = off.
        teacher_threshold: probability, the sigmoid of a logit, from which on it does so wherever the positive is;
            None = off, for teachers whose logits have no zero.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings or teacher
            scores, a positive out of range, an impossible parameter.
    """
    batch = embedding_batch("metrix", query_embeddings, document_embeddings, positive_document, relevant)
    _require_parameters(hardest, positive_margin, negative_margin, draws)
    require_positive_number("metrix", "concentration", concentration)
    safe = safe_negatives(
        batch, batch_teacher_scores, scored, teacher_margin, objective="metrix", teacher_threshold=teacher_threshold
    )
    mixable = safe if scored is None else safe & scored
    directions = functional.normalize(batch.queries, dim=1)
    with torch.no_grad():
        nearness = similarities(directions, functional.normalize(batch.documents, dim=1))
        nearest = hardest_negatives(nearness, mixable, hardest)
        counted = torch.arange(nearest.shape[1], device=mixable.device) < mixable.sum(dim=1, keepdim=True)
    if mixing is None:
        mixing = _drawn_shares(nearest.shape if draws == "pair" else (), concentration)
    mixing = mixing.to(nearest.device, batch.documents.dtype).detach()
    require_finite("metrix", "mixing", mixing)
    positives = batch.documents.index_select(0, batch.positive_column.squeeze(1)).unsqueeze(1)
    negatives = batch.documents[nearest]
    pairs = mixed_pairs(
        directions.unsqueeze(1),
        positives,
        negatives,
        mixing,
        positive_margin=positive_margin,
        negative_margin=negative_margin,
    )
    return non_zero_mean(pairs.positive_terms, counted) + non_zero_mean(pairs.negative_terms, counted)


def mixed_pairs(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    share: Tensor,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 0.5,
) -> MixedPairs:
    """Distances from anchors to mixtures, and what they cost.

    Args:
        anchors: [..., dimensions], of unit length.
        positives: [..., dimensions], broadcast with the others.
        negatives: [..., dimensions].
        share: [...] or one number, the positive's share lam.
        positive_margin: distance below which a mixture is near enough.
        negative_margin: distance above which a mixture is far enough.
    """
    part = share.unsqueeze(-1) if share.ndim else share
    mixed = functional.normalize(part * positives + (1 - part) * negatives, dim=-1)
    distances = torch.linalg.vector_norm(anchors - mixed, dim=-1)
    return MixedPairs(
        distances=distances,
        positive_terms=share * (distances - positive_margin).relu(),
        negative_terms=(1 - share) * (negative_margin - distances).relu(),
    )


def non_zero_mean(terms: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean over the counted terms that are above 0; 0 where there is none."""
    above = terms > 0 if counted is None else (terms > 0) & counted
    return torch.where(above, terms, 0).sum() / above.sum().clamp(min=1)


def _drawn_shares(shape: tuple[int, ...], concentration: float) -> Tensor:
    parameter = torch.full(shape, concentration, dtype=torch.float64, device="cpu")
    share: Tensor = torch.distributions.Beta(parameter, parameter).sample()
    return share


def _require_parameters(hardest: int, positive_margin: float, negative_margin: float, draws: str) -> None:
    if hardest < 1:
        raise ObjectiveError(f"metrix: hardest must be at least 1, got {hardest}")
    if draws not in ("batch", "pair"):
        raise ObjectiveError(f"metrix: unknown draws {draws!r}")
    for label, margin in (("positive_margin", positive_margin), ("negative_margin", negative_margin)):
        if not 0 <= margin < float("inf"):
            raise ObjectiveError(f"metrix: {label} must be a finite number >= 0, got {margin}")
