"""What the objectives over the whole batch's scores demand of them, checked once and in one wording.

Enters: similarities of every query with every document of the batch, and which pairs are relevant. Leaves: the scores
in the dtype to compute in; or an `ObjectiveError`.
"""

from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite, working_dtype

__all__ = ["score_batch"]


def score_batch(objective: str, batch_scores: Tensor, relevant: Tensor | None) -> Tensor:
    """Check the two tensors that such objectives share.

    Args:
        objective: name used in error messages.
        batch_scores: [queries, documents], any floating dtype.
        relevant: [queries, documents] bool; None where the objective can do without.

    Returns:
        `batch_scores`, at least float32.

    Raises:
        ObjectiveError: wrong shape or dtype, fewer than two documents, NaN or infinite scores.
    """
    if batch_scores.ndim != 2 or not batch_scores.is_floating_point():
        raise ObjectiveError(
            f"{objective}: batch_scores must be a floating [queries, documents] tensor, "
            f"got {batch_scores.dtype} of shape {tuple(batch_scores.shape)}"
        )
    if batch_scores.shape[1] < 2:
        raise ObjectiveError(f"{objective}: a batch of fewer than 2 documents has no negative")
    if relevant is not None:
        require_bool_like(objective, "relevant", relevant, batch_scores)
    require_finite(objective, "batch_scores", batch_scores)
    return batch_scores.to(working_dtype(batch_scores))
