"""Loss prediction: a small head learns which items the student finds hard, so that effort goes there.

    p = predicted losses, y = observed losses (constants), both [groups, items]
    relative:  L = mean over pairs of one group with y_j > y_i of  - log sigmoid(p_j - p_i)
    absolute:  L = mean over items of ( p_i - (y_i - mean(y)) / sqrt(variance(y)) )^2,  mean and variance per group

The relative form learns the order of the losses alone, which survives their shrinking during training. Reading for
retrieval: groups are batches of queries (or the pairs of one query); the teacher is asked about those with the
highest predicted loss. `guided_share` is the schedule: which share of the choices follows the prediction, the others
being drawn at random; it grows from almost none to one half, so training goes from easy to hard.

Forms: the mean runs over all pairs of the batch, not per group. The official code adds 1e-6 inside the logarithm
(relative) or to the variance (absolute); the default is exact, `epsilon=1e-6` is the code. It divides by zero where
all losses of a batch are tied. The variance is unbiased, as in the code.

Source: HPM, arXiv 2312.13714, official code Haochen-Wang409/HPM @ c15ae90771 (`forward_learning_loss`); the paper's
text was not read. The mask and the answer to ties are dualdistill's. A library function: no job objective yet.

Use when: teacher calls are the budget and the pool of unlabelled queries is larger than what it can score.

Reported: no number of the paper could be read. Its code adds this loss with weight 1 and reads the prediction from a
moving average of the model.

Edges: a batch whose losses are all tied, and a group with fewer than two real items, add 0 with zero gradient
(relative); a tied group is pulled to its mean, 0, and a group with fewer than two real items adds nothing (absolute).
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import score_lists

__all__ = ["guided_share", "loss_prediction_loss"]


def loss_prediction_loss(
    predicted_losses: Tensor,
    observed_losses: Tensor,
    mask: Tensor | None = None,
    *,
    form: Literal["relative", "absolute"] = "relative",
    epsilon: float = 0.0,
) -> Tensor:
    """How badly a head predicts which items of a group have the larger loss.

    Args:
        predicted_losses: [groups, items], the head's output; any real number.
        observed_losses: [groups, items], the losses that were measured; never receives a gradient.
        mask: [groups, items] bool, True = real item; None = all.
        form: `relative` learns the order (binary cross-entropy over pairs), `absolute` the standardised values.
        epsilon: 0 = exact; 1e-6 = the official code, see the module.

    Returns:
        Scalar >= 0 (with an `epsilon` as low as -epsilon).

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite values, an impossible
            parameter.
    """
    lists = score_lists("loss_prediction", predicted_losses, observed_losses, mask, min_width=2)
    if not 0 <= epsilon < math.inf:
        raise ObjectiveError(f"loss_prediction: epsilon must be a finite number of at least 0, got {epsilon}")
    if form == "relative":
        return _relative(lists.student, lists.teacher, lists.mask, epsilon)
    if form == "absolute":
        return _absolute(lists.student, lists.teacher.to(lists.student.dtype), lists.mask, epsilon)
    raise ObjectiveError(f"loss_prediction: unknown form {form!r}")


def _relative(predicted: Tensor, observed: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    # The code visits each pair in both orders and divides by twice as many: the same mean.
    group, harder, easier = (
        (observed.unsqueeze(2) > observed.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    ).nonzero(as_tuple=True)
    log_likelihood = functional.logsigmoid(predicted[group, harder] - predicted[group, easier])
    if epsilon > 0:
        log_likelihood = log_likelihood.logaddexp(log_likelihood.new_tensor(math.log(epsilon)))
    return -log_likelihood.sum() / max(len(group), 1)


def _absolute(predicted: Tensor, observed: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    count = mask.sum(dim=1, keepdim=True)
    counted = mask & (count >= 2)
    mean = observed.sum(dim=1, keepdim=True) / count.clamp(min=1)
    centred = (observed - mean).masked_fill(~mask, 0)
    variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    # A tied group has centred values of 0, whatever they are divided by.
    target = centred / (variance + epsilon).sqrt().clamp(min=torch.finfo(observed.dtype).tiny)
    return torch.where(counted, (predicted - target).square(), 0).sum() / counted.sum().clamp(min=1)


def guided_share(epoch: int, epochs: int) -> float:
    """Share of the choices that follow the highest predicted loss: 0.5 * (epoch + 1) / epochs; the rest is random.

    Args:
        epoch: finished epochs, from 0.
        epochs: how many there will be.

    Raises:
        ObjectiveError: an epoch outside [0, epochs).
    """
    if not 0 <= epoch < epochs:
        raise ObjectiveError(f"loss_prediction: epoch must be in [0, {epochs}), got {epoch}")
    return 0.5 * (epoch + 1) / epochs
