"""What every objective demands of its inputs, checked once and in one wording.

Enters: the raw tensors a training loop hands to a loss. Leaves: the same numbers in the dtype to compute in
(float64 stays float64, everything narrower becomes float32), with padding neutralised; or an `ObjectiveError`
that names the objective, the input and the count. A NaN that slips into a loss ruins a student silently and
hours later, so it is worth one device synchronisation per call.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError

__all__ = [
    "ScoreLists",
    "require_bool_like",
    "require_finite",
    "require_indices",
    "require_positive_number",
    "score_lists",
    "working_dtype",
]


@dataclass(frozen=True)
class ScoreLists:
    """Checked inputs of a score objective, all of shape [queries, candidates].

    Attributes:
        student: scores in the working dtype; padding holds 0 and is cut off from the gradient.
        teacher: scores in their own floating dtype (casting down could invent ties), without gradient unless the
            teacher learns; padding holds 0.
        mask: True where there is a real candidate.
        ragged: the mask if anything is padding, else None: nothing to neutralise again after each operation.
    """

    student: Tensor
    teacher: Tensor
    mask: Tensor
    ragged: Tensor | None

    @property
    def num_lists(self) -> Tensor | int:
        """Queries with at least one real candidate, but at least 1: what a mean over queries divides by."""
        if self.ragged is None:
            return max(len(self.mask), 1)
        return (self.ragged.sum(dim=1) > 0).sum().clamp(min=1)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Widest dtype among the tensors, at least float32: half precision saturates softmax tails into ties."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def score_lists(
    objective: str,
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None,
    *,
    min_width: int,
    teacher_learns: bool = False,
) -> ScoreLists:
    """Check and neutralise the inputs that all score objectives share.

    Args:
        objective: name used in error messages.
        student_scores: [queries, candidates], any floating dtype.
        teacher_scores: [queries, candidates], any floating dtype; constants.
        mask: [queries, candidates] bool, True = real candidate; None = all real. What stands at False is
            ignored, NaN included.
        min_width: smallest number of columns on which the objective says anything.
        teacher_learns: keep the teacher in the graph (objectives that train both sides).

    Raises:
        ObjectiveError: wrong shape or dtype, fewer than `min_width` columns, NaN or infinity at a real
            candidate.
    """
    for label, scores in (("student_scores", student_scores), ("teacher_scores", teacher_scores)):
        if scores.ndim != 2 or not scores.is_floating_point():
            raise ObjectiveError(
                f"{objective}: {label} must be a floating [queries, candidates] tensor, "
                f"got {scores.dtype} of shape {tuple(scores.shape)}"
            )
    if student_scores.shape != teacher_scores.shape:
        raise ObjectiveError(
            f"{objective}: student_scores {tuple(student_scores.shape)} and "
            f"teacher_scores {tuple(teacher_scores.shape)} must have one shape"
        )
    width = student_scores.shape[1]
    if width < min_width:
        raise ObjectiveError(f"{objective}: a list of {width} candidate(s) carries no signal, it needs {min_width}")
    if mask is not None:
        require_bool_like(objective, "mask", mask, student_scores)
    ragged = mask if mask is not None and not bool(mask.all()) else None
    student, teacher = student_scores, teacher_scores if teacher_learns else teacher_scores.detach()
    if ragged is not None:  # on a CPU `where` is several times as fast as masked_fill
        student, teacher = torch.where(ragged, student, 0), torch.where(ragged, teacher, 0)
    require_finite(objective, "student_scores", student)
    require_finite(objective, "teacher_scores", teacher)
    if mask is None:
        mask = torch.ones_like(student, dtype=torch.bool)
    return ScoreLists(student.to(working_dtype(student, teacher)), teacher, mask, ragged)


def require_bool_like(objective: str, label: str, flags: Tensor, like: Tensor) -> None:
    """Refuse flags that are not bool or not of the shape of `like` (integers would index instead of select).

    Raises:
        ObjectiveError: wrong dtype or shape.
    """
    if flags.dtype != torch.bool or flags.shape != like.shape:
        raise ObjectiveError(
            f"{objective}: {label} must be bool of shape {tuple(like.shape)}, "
            f"got {flags.dtype} of shape {tuple(flags.shape)}"
        )


def require_finite(objective: str, label: str, values: Tensor) -> None:
    """Refuse NaN and infinities.

    Raises:
        ObjectiveError: with how many there are and where the first one is.
    """
    values = values.detach()
    # One pass and no temporary: a sum with a NaN or an infinity in it is not finite. One that overflows is looked at.
    if bool(torch.isfinite(values.sum())):
        return
    broken = ~torch.isfinite(values)
    if bool(broken.any()):
        first = tuple(int(i) for i in broken.nonzero()[0])
        raise ObjectiveError(
            f"{objective}: {label} has {int(broken.sum())} NaN or infinite value(s) of {values.numel()}, "
            f"the first ({float(values[first])}) at {first}"
        )


def require_indices(objective: str, label: str, indices: Tensor, *, rows: int, width: int) -> None:
    """Refuse anything but one column index per row, -1 meaning none.

    Raises:
        ObjectiveError: wrong shape, not int64, or an index outside [-1, width).
    """
    if indices.dtype != torch.int64 or indices.shape != (rows,):
        raise ObjectiveError(
            f"{objective}: {label} must be int64 of shape ({rows},), "
            f"got {indices.dtype} of shape {tuple(indices.shape)}"
        )
    outside = (indices < -1) | (indices >= width)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ObjectiveError(
            f"{objective}: {label}[{row}] is {int(indices[row])}, outside the {width} columns (-1 = none)"
        )


def require_positive_number(objective: str, label: str, value: float | Tensor) -> None:
    """Refuse a temperature or scale that is not a positive finite number; one that is learned comes as a 0-dim tensor.

    Raises:
        ObjectiveError: zero, negative, NaN or infinite.
    """
    value = float(value.detach()) if isinstance(value, Tensor) else value
    if not 0 < value < float("inf"):
        raise ObjectiveError(f"{objective}: {label} must be a positive finite number, got {value}")
