"""Uniformity and alignment: queries meet their documents, and everything else spreads over the unit sphere.

    A    = mean_i |x_i - y_i|^2
    U(z) = log mean_{j != k} exp(-s |z_j - z_k|^2)
    XU   = log mean_{j != k} exp(-s |x_j - y_k|^2)
    L    = alignment_weight A + uniformity_weight (U(x) + U(y)) / 2 + cross_weight XU

x are the queries that have a positive, y their positive documents, s = `sharpness`. All vectors are divided by their
length, inside the graph. Pairs of rows whose queries have the same text, or whose documents are the same or known to be
relevant to the other's query, leave all three averages: what belongs together is never pushed apart. The usual
diagnosis is the gap between the mean of the queries and the mean of the documents (`modality_gap`); U and A alone close
it less than XU, which sees queries and documents together.
Forms: |x - y|^2 and 2 - 2 x.y are equal on unit vectors; their gradients differ along the vector itself, which
normalising inside the graph removes. The pure functions offer both as `distance`.

Source: Wang and Isola (2020) for U and A; arXiv 2405.18570 for XU and the sum with a contrastive loss. From general
knowledge: the papers' text could not be read, and which pairs XU averages (here those that do not belong together) is a
reading.

Use when: query and document embeddings live in separate regions (two towers, two modalities) or collapse; beside
`info_nce`, whose place it does not take. Look at `modality_gap` first.

Reported: no number of either paper could be read.

Edges: a query without a positive takes no part; fewer than two rows leave A alone, none 0 with zero gradient. A value
may be negative: U is at most 0.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import embedding_batch, similarities
from pipelines.objectives.masked import zero_probability_logit
from pipelines.objectives.safe_negatives import unrelated_queries

__all__ = ["alignment", "cross_uniformity", "modality_gap", "uniformity", "uniformity_alignment_loss"]

Distance = Literal["squared_euclidean", "two_minus_two_dot"]


def uniformity_alignment_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    same_query: Tensor | None = None,
    alignment_weight: float = 1.0,
    uniformity_weight: float = 1.0,
    cross_weight: float = 1.0,
    sharpness: float = 2.0,
) -> Tensor:
    """Weighted sum of alignment, mean uniformity of both sides, and cross uniformity.

    Args:
        query_embeddings: [queries, dimensions]; divided by their length here.
        document_embeddings: [documents, dimensions], in any order; divided by their length here.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that are never pushed away from that query; None = only its
            positive.
        same_query: [queries, queries] bool, queries of equal text: they share what is relevant, so that neither they
            nor their positives are spread apart; None = all texts differ.
        alignment_weight: of A.
        uniformity_weight: of the mean of U over queries and positive documents.
        cross_weight: of XU.
        sharpness: multiplies squared distances in U and XU.

    Returns:
        Scalar of either sign.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings, a positive
            out of range, a negative weight, a sharpness that is not positive.
    """
    name = "uniformity_alignment"
    batch = embedding_batch(name, query_embeddings, document_embeddings, positive_document, relevant, same_query)
    require_positive_number(name, "sharpness", sharpness)
    weights = {"alignment": alignment_weight, "uniformity": uniformity_weight, "cross": cross_weight}
    for term, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ObjectiveError(f"{name}: {term}_weight must be a finite number >= 0, got {weight}")

    queries = functional.normalize(batch.queries, dim=1)
    documents = functional.normalize(batch.documents.index_select(0, batch.positive_column.squeeze(1)), dim=1)
    apart = unrelated_queries(batch)
    aligned = alignment(queries, documents, counted=batch.has_positive)
    spread = uniformity(queries, counted=apart, sharpness=sharpness)
    spread = spread + uniformity(documents, counted=apart, sharpness=sharpness)
    crossed = cross_uniformity(queries, documents, counted=apart, sharpness=sharpness)
    return alignment_weight * aligned + uniformity_weight * spread / 2 + cross_weight * crossed


def alignment(
    left: Tensor, right: Tensor, *, counted: Tensor | None = None, distance: Distance = "squared_euclidean"
) -> Tensor:
    """Mean squared distance of paired rows; 0 without gradient where none is counted.

    Args:
        left: [rows, dimensions], unit length.
        right: [rows, dimensions], unit length; row i belongs to row i of `left`.
        counted: [rows] bool, the rows that are averaged; None = all.
        distance: which of two forms, equal on unit vectors, is differentiated.
    """
    if distance == "squared_euclidean":
        squared = (left - right).square().sum(dim=1)
    else:
        squared = 2 - 2 * (left * right).sum(dim=1)
    if counted is None:
        return squared.mean()
    return torch.where(counted, squared, 0).sum() / counted.sum().clamp(min=1)


def uniformity(
    embeddings: Tensor,
    *,
    counted: Tensor | None = None,
    sharpness: float = 2.0,
    distance: Distance = "squared_euclidean",
) -> Tensor:
    """Log mean of exp(-sharpness * squared distance) over pairs of rows; 0 without gradient where none is counted.

    Args:
        embeddings: [rows, dimensions], unit length.
        counted: [rows, rows] bool, the pairs that are averaged; None = all pairs of different rows.
        sharpness: multiplies squared distances.
        distance: which of two forms, equal on unit vectors, is differentiated.
    """
    return cross_uniformity(embeddings, embeddings, counted=counted, sharpness=sharpness, distance=distance)


def cross_uniformity(
    left: Tensor,
    right: Tensor,
    *,
    pairs: Literal["off_diagonal", "all"] = "off_diagonal",
    counted: Tensor | None = None,
    sharpness: float = 2.0,
    distance: Distance = "squared_euclidean",
) -> Tensor:
    """The same over pairs of a left and a right row; `all` counts the pairs that belong together as well.

    Args:
        left: [rows, dimensions], unit length.
        right: [rows, dimensions], unit length; row i belongs to row i of `left`.
        pairs: which of the rows x rows pairs are averaged where `counted` is None.
        counted: [rows, rows] bool, the pairs that are averaged.
        sharpness: multiplies squared distances.
        distance: which of two forms, equal on unit vectors, is differentiated.
    """
    if counted is None:
        counted = torch.ones(len(left), len(right), dtype=torch.bool, device=left.device)
        if pairs == "off_diagonal":
            counted.fill_diagonal_(fill_value=False)
    return _log_mean_kernel(left, right, counted, sharpness, distance)


def modality_gap(queries: Tensor, documents: Tensor) -> Tensor:
    """Distance between the mean query and the mean document: near 0 where both share one region of the sphere.

    A diagnosis (arXiv 2405.18570), not part of the loss; on unit vectors it is at most 2.

    Args:
        queries: [queries, dimensions], unit length.
        documents: [documents, dimensions], unit length; as many or as few as there are.
    """
    gap: Tensor = torch.linalg.vector_norm(queries.mean(dim=0) - documents.mean(dim=0))
    return gap


def _log_mean_kernel(left: Tensor, right: Tensor, counted: Tensor, sharpness: float, distance: Distance) -> Tensor:
    """Log of the kernel's mean over the counted pairs; 0 without gradient where none is counted."""
    squared = -2 * similarities(left, right)
    if distance == "squared_euclidean":
        squared = squared + left.square().sum(dim=1, keepdim=True) + right.square().sum(dim=1)
    else:
        squared = squared + 2
    kernel = (-sharpness * squared).masked_fill(~counted, zero_probability_logit(squared.dtype))
    count = counted.sum().to(kernel.dtype)
    return torch.where(count > 0, kernel.flatten().logsumexp(dim=0) - count.clamp(min=1).log(), 0)
