"""Four figures that tell a healthy embedding space from a collapsed one, while the loss still looks fine.

    uniformity      log mean_{j != k} exp(-2 |d_j - d_k|^2)    documents; 0 collapsed, about -4 spread over the sphere
    alignment       mean_i |q_i - d_i+|^2                      query and its positive; 0 the same vector, 2 orthogonal
    effective_rank  exp(-sum_k p_k log p_k), p = s / sum(s)    s: singular values of the documents; 1 collapsed
    modality_gap    |mean_i q_i - mean_j d_j|                  0: both sides share one region of the sphere, at most 2

Enters: a batch's vectors. Leaves: numbers for a step's metrics, never a gradient. All vectors are divided by their
length, in fp32. Figures of batches of different sizes do not compare: the effective rank is at most the smaller of
documents and dimensions.

Sources: Wang and Isola (2020) for the first two, Roy and Vetterli (2007) for the rank (of the matrix as it is, not
centred), Liang et al. (2022) for the gap. From general knowledge: the papers' text could not be read.

Edges: a figure that is undefined is left out, never NaN or a made-up 0: uniformity with fewer than two documents,
alignment without a positive, the gap without queries or documents. One document has the effective rank 1. A vector of
length zero has no direction and takes no part in any figure.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.uniformity_alignment import alignment, modality_gap, uniformity

__all__ = ["embedding_health"]


@torch.no_grad()
def embedding_health(queries: Tensor, documents: Tensor, positive_document: Tensor) -> dict[str, float]:
    """The figures that are defined for this batch.

    The cost is that of the documents' singular values, documents x dimensions x the smaller of both: for a step now
    and then, not for every one.

    Args:
        queries: [Q, D], any length and float dtype.
        documents: [N, D], likewise; distinct documents.
        positive_document: [Q] int64, row of each query's positive in `documents`; -1 = none.

    Returns:
        Up to four of `uniformity`, `alignment`, `effective_rank`, `modality_gap`, all finite.

    Raises:
        ObjectiveError: shapes disagree, a positive is out of range, or a vector has a NaN or an infinity.
    """
    _require_fitting(queries, documents, positive_document)
    positive_document = positive_document.to(documents.device)
    with torch.autocast(documents.device.type, enabled=False):
        left, left_counts = _directions("queries", queries)
        right, right_counts = _directions("documents", documents)
        spread, spread_queries = right[right_counts], left[left_counts]
        paired = (positive_document >= 0) & left_counts
        paired &= right_counts[positive_document.clamp(min=0)] if len(right) else False
        figures: dict[str, Tensor] = {}
        if len(spread) > 1:
            figures["uniformity"] = uniformity(spread)
        if paired.any():
            figures["alignment"] = alignment(left[paired], right[positive_document[paired]])
        if len(spread):
            figures["effective_rank"] = _effective_rank(spread)
        if len(spread) and len(spread_queries):
            figures["modality_gap"] = modality_gap(spread_queries, spread)
    return {name: value.item() for name, value in figures.items()}


def _effective_rank(vectors: Tensor) -> Tensor:
    """Exp of the entropy of the normalised singular values of [rows, dimensions]; scalar from 1 to the rank."""
    singular = torch.linalg.svdvals(vectors)
    shares = singular / singular.sum()
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


def _directions(side: str, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, D] fp32 of unit length, and [rows] bool: which have a direction at all."""
    plain = vectors.float()
    if not plain.isfinite().all():
        broken = (~plain.isfinite()).any(dim=1).nonzero().flatten().tolist()
        raise ObjectiveError(
            f"embedding_health: {len(broken)} of {len(plain)} {side} are not finite, first {broken[0]}"
        )
    counts = (plain != 0).any(dim=1)
    # By the largest entry first: in fp32 the squares of a short vector are 0, those of a long one infinite.
    scaled = plain / plain.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return functional.normalize(scaled, dim=1), counts


def _require_fitting(queries: Tensor, documents: Tensor, positive_document: Tensor) -> None:
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1] or not queries.shape[1]:
        raise ObjectiveError(
            f"embedding_health: queries {list(queries.shape)} and documents {list(documents.shape)} "
            "should be [queries, dimensions] and [documents, dimensions]"
        )
    if positive_document.shape != queries.shape[:1]:
        raise ObjectiveError(
            f"embedding_health: positive_document {list(positive_document.shape)} for {len(queries)} queries"
        )
    if len(positive_document) and not -1 <= positive_document.min() <= positive_document.max() < len(documents):
        raise ObjectiveError(
            f"embedding_health: positive_document from {positive_document.min().item()} to "
            f"{positive_document.max().item()}, there are {len(documents)} documents"
        )
