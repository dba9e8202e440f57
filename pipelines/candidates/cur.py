"""ANNCUR: search with a cross-encoder's own scores through a CUR approximation of its score matrix, without a student.

    A = teacher scores [queries, documents]    r = anchor queries, c = anchor documents
    R = A[r, :]      U = pinv(A[r, c])         A[q, :]  ~  A[q, c] @ U @ R

Enters: the anchor queries' scores of every document (once per corpus). Leaves: a vector per document, column of U @ R;
a query's vector is its scores of the anchor documents, so it costs as many teacher calls as there are anchors, and the
inner product of both is the approximate teacher score. Both fit `dense.top_k_inner_product`. Exact where the matrix
has the rank of the anchor block. The teacher calls of a query are anchors + candidates re-ranked afterwards.

The block must be inverted with care: a small singular value blows the approximation up. Take more anchor queries than
anchor documents, and cut (`rcond`) or damp (`ridge`) the small singular values. Everything is float64.

Columns work alike: for a new document scored by the anchor queries, hand over A transposed.

Source: Yadav et al., EMNLP 2022, arXiv 2210.12579; official code iesl/anncur @ d929a7c2ad (`CURApprox`), which has
`rcond` 1e-15 and no ridge. The ridge is dualdistill's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import PipelineError

__all__ = ["CurIndex", "build_cur_index", "stable_inverse"]


@dataclass(frozen=True)
class CurIndex:
    """Document vectors that turn a query's scores of the anchor documents into scores of all documents.

    Attributes:
        anchor_documents: int64 [anchors], rows of the documents that every query is scored against, in this order.
        document_embeddings: float64 [documents, anchors].
    """

    anchor_documents: NDArray[np.int64]
    document_embeddings: NDArray[np.float64]

    def query_embeddings(self, anchor_scores: ArrayLike) -> NDArray[np.float64]:
        """The vectors of queries: their teacher scores of `anchor_documents`, checked.

        Args:
            anchor_scores: [queries, anchors], raw teacher logits, in the order of `anchor_documents`.

        Raises:
            PipelineError: another number of anchors, NaN or infinity.
        """
        scores = _matrix("anchor_scores", anchor_scores)
        if scores.shape[1] != len(self.anchor_documents):
            raise PipelineError(
                f"the CUR index needs a score of each of its {len(self.anchor_documents)} anchor documents, "
                f"got {scores.shape[1]}"
            )
        return scores

    def approximate(self, anchor_scores: ArrayLike) -> NDArray[np.float64]:
        """Approximate teacher scores [queries, documents] from the scores of the anchor documents."""
        return self.query_embeddings(anchor_scores) @ self.document_embeddings.T


def build_cur_index(
    anchor_query_scores: ArrayLike, anchor_documents: ArrayLike, *, rcond: float = 1e-15, ridge: float = 0.0
) -> CurIndex:
    """Document vectors from the anchor queries' scores of all documents.

    Args:
        anchor_query_scores: R, [anchor queries, documents], raw teacher logits.
        anchor_documents: [anchors] distinct rows of documents; at most as many as there are anchor queries.
        rcond: singular values of the anchor block below `rcond` times the largest count as zero; the default is
            numpy's, sensible ones for noisy scores are 1e-3 to 1e-1.
        ridge: damps small singular values, s becomes (s^2 + ridge) / s before it is inverted; in squared logits.

    Raises:
        PipelineError: no anchors, fewer anchor queries than anchor documents, an anchor twice or out of range, NaN or
            infinite scores, a block of zeros, an impossible parameter.
    """
    rows = _matrix("anchor_query_scores", anchor_query_scores)
    anchors = np.asarray(anchor_documents)
    if anchors.ndim != 1 or not np.issubdtype(anchors.dtype, np.integer):
        raise PipelineError(f"anchor_documents must be a list of rows, got {anchors.dtype} of shape {anchors.shape}")
    if not 1 <= len(anchors) <= len(rows):
        raise PipelineError(
            f"too few anchors: {len(rows)} anchor queries for {len(anchors)} anchor documents; the block of their "
            "scores can be inverted with at least 1 anchor document and at least as many anchor queries"
        )
    if len(np.unique(anchors)) != len(anchors) or anchors.min() < 0 or anchors.max() >= rows.shape[1]:
        raise PipelineError(f"anchor_documents must be distinct rows in [0, {rows.shape[1]})")
    inverse = stable_inverse(rows[:, anchors], rcond=rcond, ridge=ridge)
    return CurIndex(anchors.astype(np.int64), np.ascontiguousarray((inverse @ rows).T))


def stable_inverse(block: ArrayLike, *, rcond: float = 1e-15, ridge: float = 0.0) -> NDArray[np.float64]:
    """U: the Moore-Penrose inverse of the anchor block, its small singular values cut and damped.

    Args:
        block: [anchor queries, anchor documents].
        rcond: see `build_cur_index`; with `ridge` 0 the result is `numpy.linalg.pinv(block, rcond)`.
        ridge: see `build_cur_index`.

    Returns:
        float64 [anchor documents, anchor queries].

    Raises:
        PipelineError: NaN or infinity, a block of zeros, an impossible parameter.
    """
    matrix = _matrix("the anchor block", block)
    if not (0 <= rcond < 1 and 0 <= ridge < np.inf):
        raise PipelineError(f"rcond must be in [0, 1) and ridge at least 0, got rcond={rcond}, ridge={ridge}")
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    kept = singular > rcond * singular.max(initial=0.0)
    if not kept.any():
        raise PipelineError("the anchor block holds only zeros: the teacher tells its anchors nothing apart")
    inverted = np.zeros_like(singular)
    inverted[kept] = singular[kept] / (singular[kept] ** 2 + ridge)
    inverse: NDArray[np.float64] = (right.T * inverted) @ left.T
    return inverse


def _matrix(label: str, values: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2:
        raise PipelineError(f"{label} must be a matrix, got shape {matrix.shape}")
    broken = int((~np.isfinite(matrix)).sum())
    if broken:
        raise PipelineError(f"{label}: {broken} NaN or infinite score(s) of {matrix.size}")
    return matrix
