"""CL2L, contrastive loss on global and local views: augmented views have features of their own in a joint mean.

    CE(x, y, T)  = cross-entropy of softmax( x.y / T ) with the pairs that belong together
    one way      = ( CE(x, y, temperature) + n mean_{a,b} CE(x_a, y_b, local_temperature) ) / (1 + n)
    L            = mean of both ways

x and y are the two sides (image and text, or query and document), x_a and y_b their n augmented views with features
from a separate projector; every view of one side meets every view of the other. All vectors are divided by their length
here. Targets of local views are smoothed: an augmented text describes its image less exactly.
Forms: the official `sum` adds the two ways instead of averaging them.

Source: arXiv 2305.08675, official code facebookresearch/clip-rocket (`CL2LLoss`).

Use when: from Python, for students trained on augmented pairs (dropped words, crops). No job offers it: a job's batches
have no views. Improve the augmentation before the loss, which is the paper's own point.

Reported: no number of the paper was copied; it says that a better training recipe beats added self-supervised losses.

Edges: without views (n = 0) it is the global term alone. Both sides must have one row per pair, at least two.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite, require_positive_number, working_dtype

__all__ = ["cl2l_loss", "global_contrast", "local_contrast"]


def cl2l_loss(
    left: Tensor,
    right: Tensor,
    left_views: Tensor,
    right_views: Tensor,
    *,
    temperature: float = 0.05,
    local_temperature: float = 0.05,
    label_smoothing: float = 0.1,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Global and local contrast of both directions.

    Args:
        left: [pairs, dimensions].
        right: [pairs, dimensions], row i belongs to row i of `left`.
        left_views: [views, pairs, local dimensions], augmented.
        right_views: [views, pairs, local dimensions].
        temperature: divides cosines of the global vectors, 1 / logit scale.
        local_temperature: divides cosines of views.
        label_smoothing: of the local targets, in [0, 1).
        reduction: over the two directions.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two pairs, NaN or infinite vectors, an impossible
            parameter.
    """
    _require_views(left, right, left_views, right_views)
    require_positive_number("cl2l", "temperature", temperature)
    require_positive_number("cl2l", "local_temperature", local_temperature)
    if not 0 <= label_smoothing < 1:
        raise ObjectiveError(f"cl2l: label_smoothing must be in [0, 1), got {label_smoothing}")
    if reduction not in ("mean", "sum"):
        raise ObjectiveError(f"cl2l: unknown reduction {reduction!r}")
    views = len(left_views)
    total = global_contrast(left, right, temperature) + global_contrast(right, left, temperature)
    if views:
        local = local_contrast(left_views, right_views, local_temperature, label_smoothing)
        local = local + local_contrast(right_views, left_views, local_temperature, label_smoothing)
        total = (total + views * local) / (1 + views)
    return total / 2 if reduction == "mean" else total


def global_contrast(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each left row with its right row among all, [pairs, dimensions] both."""
    return local_contrast(left.unsqueeze(0), right.unsqueeze(0), temperature, 0.0)


def local_contrast(left_views: Tensor, right_views: Tensor, temperature: float, label_smoothing: float) -> Tensor:
    """Mean of the same over every left view with every right view, [views, pairs, dimensions] both."""
    dtype = working_dtype(left_views, right_views)
    left, right = (functional.normalize(side.to(dtype), dim=2).flatten(0, 1) for side in (left_views, right_views))
    views, pairs = left_views.shape[:2]
    with torch.autocast(left.device.type, enabled=False):
        logits = left @ right.T / temperature
    logits = logits.reshape(views, pairs, len(right_views), pairs).transpose(1, 2).reshape(-1, pairs)
    target = torch.arange(pairs, device=logits.device).repeat(views * len(right_views))
    return functional.cross_entropy(logits, target, label_smoothing=label_smoothing)


def _require_views(left: Tensor, right: Tensor, left_views: Tensor, right_views: Tensor) -> None:
    for label, one, other, axes in (("left and right", left, right, 2), ("views", left_views, right_views, 3)):
        if one.ndim != axes or one.shape != other.shape or not (one.is_floating_point() and other.is_floating_point()):
            raise ObjectiveError(
                f"cl2l: {label} must be floating with {axes} axes and one shape, "
                f"got {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
            )
    if left_views.shape[1] != len(left):
        raise ObjectiveError(f"cl2l: {len(left)} pairs, but views of {left_views.shape[1]}")
    if len(left) < 2:
        raise ObjectiveError(f"cl2l: a batch of {len(left)} pair(s) has no negative")
    for label, values in (("left", left), ("right", right), ("left_views", left_views), ("right_views", right_views)):
        require_finite("cl2l", label, values)
