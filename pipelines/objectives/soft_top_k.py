"""Soft top-k: every positive of a query should be among its k best documents; the order among those does not matter.

    s_ij = q_i.d_j / temperature
    t_i  = the offset for which  sum over documents j of sigmoid(alpha (s_ij + t_i)) = k
    L    = mean over queries i with a positive of  - mean over its positives p of  log sigmoid(alpha (s_ip + t_i))

The sigmoids are a smooth top-k indicator: near 1 above the k-th score, near 0 below. A positive raises itself and
lowers those around the threshold, so it learns from what decides recall@k and not from what is far below. The gradient
is that of the solution t_i itself (implicit function theorem), with v = alpha p (1 - p) and p the sigmoids:

    d log p_j / d s_m = alpha (1 - p_j) ( [j = m] - v_m / sum v )

Forms: official code bisects a fixed number of times between bounds that do not hold for very long lists. Here Newton
steps equate the logarithms of what is missing in the top and of what is too much below it, which stays exact when every
sigmoid is saturated. Official code samples k positives where there are more; here such a query's k is raised to their
number, so all of them fit.

Source: arXiv 2310.10636 (ICLR 2024), official code nilesh2797/DEXML: `SimLoss` with `topk` and `DistLogTopK`.

Use when: recall@k is what counts, say for a reranker that reads k candidates, and queries have several positives.

Reported: no headline of its own; the paper's P@1/P@5 table is that of `decoupled_softmax`.

Edges: a query without a positive is left out; a batch of those is 0 with zero gradient. k is cut to one less than the
number of documents in the batch: everything is always among all of them, for which reason a query whose documents are
all relevant adds 0.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.score_batch import score_batch

__all__ = ["log_soft_top_k", "soft_top_k_loss"]


def soft_top_k_loss(
    batch_scores: Tensor,
    relevant: Tensor,
    *,
    k: int = 5,
    alpha: float = 2.0,
    temperature: float = 0.05,
    iterations: int = 32,
) -> Tensor:
    """Negative log of the positives' soft top-k indicator, averaged over positives, then over queries that have one.

    Args:
        batch_scores: [queries, documents], the student's similarities with every document of the batch.
        relevant: [queries, documents] bool, all positives of each query.
        k: how many documents are in the top.
        alpha: sharpness of the indicator, after the temperature.
        temperature: divides the scores.
        iterations: most Newton steps towards the offset; about six are enough.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite scores, an impossible
            parameter.
    """
    scores = score_batch("soft_top_k", batch_scores, relevant)
    for label, value in (("temperature", temperature), ("alpha", alpha), ("k", k), ("iterations", iterations)):
        require_positive_number("soft_top_k", label, value)
    positives = relevant.sum(dim=1)
    room = positives.clamp(min=k).clamp(max=scores.shape[1] - 1)
    log_indicator = log_soft_top_k(scores / temperature, room, alpha=alpha, iterations=iterations)
    rows, columns = (relevant & (positives < scores.shape[1]).unsqueeze(1)).nonzero(as_tuple=True)
    total = -(log_indicator[rows, columns] / positives[rows]).sum()
    return total / (positives > 0).sum().clamp(min=1)


def log_soft_top_k(scores: Tensor, k: Tensor, *, alpha: float, iterations: int) -> Tensor:
    """Logarithm of a smooth top-k indicator whose rows sum to k, with the exact gradient.

    Args:
        scores: [rows, columns], float32 or float64.
        k: [rows] int64, from 1 to columns - 1.
        alpha: sharpness.
        iterations: most Newton steps.

    Returns:
        [rows, columns].

    Raises:
        ObjectiveError: a k outside its range.
    """
    if k.numel() and not (int(k.min()) >= 1 and int(k.max()) < scores.shape[1]):
        raise ObjectiveError(
            f"soft_top_k: k must be from 1 to {scores.shape[1] - 1}, got {int(k.min())} to {int(k.max())}"
        )
    return cast("Tensor", _LogSoftTopK.apply(scores, k, alpha, iterations))  # type: ignore[no-untyped-call]


class _LogSoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: Tensor, alpha: float, iterations: int) -> Tensor:
        logits = _threshold_logits(scores, k.unsqueeze(1), alpha, iterations)
        ctx.save_for_backward(logits)
        ctx.alpha = alpha
        return functional.logsigmoid(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (logits,) = ctx.saved_tensors
        own = ctx.alpha * gradient * torch.sigmoid(-logits)
        # v / sum v: far from the threshold every v underflows, their logarithms do not.
        shares = (functional.logsigmoid(logits) + functional.logsigmoid(-logits)).softmax(dim=1)
        return own - shares * own.sum(dim=1, keepdim=True), None, None, None


def _threshold_logits(scores: Tensor, k: Tensor, alpha: float, iterations: int) -> Tensor:
    """Scores plus t, times alpha, with t such that the sigmoids of each row sum to k.

    They do when as much is missing to 1 in the k highest as there is above 0 in the rest. The logarithms of the two
    sides are compared, counted from the k-th score: float32 keeps its digits where they matter.
    """
    count = scores.shape[1]
    best, columns = scores.topk(int(k.max()) + 1 if len(k) else 1, dim=1)
    in_top = torch.arange(best.shape[1], device=scores.device) < k
    threshold = best.gather(1, k - 1)
    top = best - threshold
    centred = scores - threshold
    rest = centred.scatter(1, columns, top.masked_fill(in_top, -torch.inf))

    # The sum cannot reach k before `lower`, even if everything below the k - 1 best were level with the k-th; and it
    # has reached k at `upper`, even if the k best were level with the next one.
    lower = -(count - k).to(scores.dtype).log() / alpha
    upper = threshold - best.gather(1, k) + k.to(scores.dtype).log() / alpha
    offset = (lower + upper) / 2
    for _ in range(iterations):
        log_surplus, surplus_bend = _log_sum(functional.logsigmoid(alpha * (rest + offset)))
        log_deficit, deficit_bend = _log_sum(
            functional.logsigmoid(-alpha * (top + offset)).masked_fill(~in_top, -torch.inf)
        )
        # The slope lies between alpha and 2 alpha (the bends add up to 1 at most, as no score of the rest is above one
        # of the top), so a Newton step never ends farther from the solution than it began.
        step = (log_surplus - log_deficit) / (alpha * (2 - surplus_bend - deficit_bend))
        offset = offset - step
        if bool((step.abs() <= torch.finfo(scores.dtype).eps * (1 + offset.abs())).all()):
            break
    return alpha * (centred + offset)


def _log_sum(log_terms: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the logarithm of sum p, and sum p^2 / sum p, by which its derivative falls short of alpha."""
    highest = log_terms.amax(dim=1, keepdim=True)
    scaled = (log_terms - highest).exp_()
    total = scaled.sum(dim=1, keepdim=True)
    return highest + total.log(), highest.exp() * scaled.square_().sum(dim=1, keepdim=True) / total
