"""MW loss (Mann-Whitney): every positive of the batch above every negative of every query, on one global scale.

    S- = { s_jn : n is a negative of query j }, of all queries together
    paper_sum:        L = (1/B) sum_i sum_{s- in S-} log(1 + exp( (s- - s_i,pos) / temperature ))       B positives
    mean_over_pairs:  L = the same sum divided by the number of (positive, negative) pairs

InfoNCE compares a positive with the negatives of its own query only, so an offset per query costs it nothing; here it
costs, and one threshold can serve all queries: the loss bounds the area above the ROC curve, AoC <= L / log 2 as a mean
over pairs. A negative of a query is any document of the batch that is not known to be relevant to it. Pairs are
compared a few positives at a time and gradients are summed on the way, so memory grows with the batch's scores and not
with its pairs.

Source: arXiv 2510.00137 (equations 2 and 3, Lemma 2); no official code is known. The paper trains with temperature 0.01
and 5 hard negatives, batches of 16 to 64.

Use when: scores must compare across queries (a global threshold, AUC) and are cosines. Choose `reduction:
mean_over_pairs` unless the batch size is fixed and the learning rate was tuned for it: `paper_sum`, the paper's
equation and so the default, divides by B only, and its value and gradient grow with the square of the batch size
(thousands at 16 queries); beside other terms it drowns them.

Reported: averages over four data sets (AUC, MRR, nDCG@10): MiniLM .85, .52, .58 with a contrastive loss, .91, .53, .58
with this one; XLM-R base .84, .53, .60 to .93, .55, .61; large .84, .54, .58 to .96, .59, .64. Some nDCG losses (MiniLM
on Natural Questions .46 to .43). Its ICLR submission was rejected: treat it as optional.

Edges: a query without a positive takes no part, its documents are nobody's negatives (what is relevant to it is not
known); a batch of those, or one without any negative, is 0 with zero gradient.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_indices, require_positive_number
from pipelines.objectives.score_batch import score_batch

__all__ = ["mw_loss"]

_NEGATIVES_AT_A_TIME = 16384
"""With 16 positives, blocks of a mebibyte: they stay in a core's cache, which is worth a factor of six."""


def mw_loss(
    batch_scores: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    temperature: float = 0.05,
    reduction: Literal["paper_sum", "mean_over_pairs"] = "paper_sum",
    chunk_size: int = 16,
) -> Tensor:
    """Softplus of (negative - positive) over all pairs of a positive and a negative, whosever they are.

    Args:
        batch_scores: [queries, documents], similarities of the student before the temperature.
        positive_document: [queries] int64, column of each query's positive; -1 = none, the query takes no part.
        relevant: [queries, documents] bool, no negatives of that query; None = only its positive.
        temperature: divides score differences; the paper trains with 0.01.
        reduction: `paper_sum` divides by the number of positives, `mean_over_pairs` by that of pairs.
        chunk_size: positives compared at a time. It changes memory and speed, no result.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite scores, a positive out of
            range, an impossible parameter.
    """
    scores = score_batch("mw", batch_scores, relevant)
    rows, width = scores.shape
    require_positive_number("mw", "temperature", temperature)
    if chunk_size < 1:
        raise ObjectiveError(f"mw: chunk_size must be at least 1, got {chunk_size}")
    require_indices("mw", "positive_document", positive_document, rows=rows, width=width)
    known = positive_document >= 0
    column = positive_document.clamp(min=0).unsqueeze(1)
    negative = known.unsqueeze(1).expand_as(scores)
    if relevant is not None:
        negative = negative & ~relevant
    negative = negative.scatter(1, column, torch.zeros_like(column, dtype=torch.bool))

    scores = scores / temperature
    positives, negatives = scores.gather(1, column)[known, 0], scores[negative]
    total = cast(Tensor, _PairwiseSoftplus.apply(positives, negatives, chunk_size))  # type: ignore[no-untyped-call]
    if reduction == "paper_sum":
        return total / max(len(positives), 1)
    if reduction == "mean_over_pairs":
        return total / max(len(positives) * len(negatives), 1)
    raise ObjectiveError(f"mw: unknown reduction {reduction!r}")


class _PairwiseSoftplus(torch.autograd.Function):
    """sum_ij log(1 + exp(negatives_j - positives_i)); its gradient, sigmoids summed by row and column, by the way."""

    @staticmethod
    def forward(ctx: Any, positives: Tensor, negatives: Tensor, chunk_size: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=positives.device)
        push = torch.zeros_like(negatives)
        pull = torch.zeros_like(positives)
        for above in range(0, len(positives), chunk_size):
            for below in range(0, len(negatives), _NEGATIVES_AT_A_TIME):
                rows, columns = slice(above, above + chunk_size), slice(below, below + _NEGATIVES_AT_A_TIME)
                difference = negatives[columns] - positives[rows].unsqueeze(1)
                weight = difference.sigmoid()
                push[columns] += weight.sum(dim=0)
                pull[rows] += weight.sum(dim=1)
                total += functional.logsigmoid(difference.neg_()).sum(dtype=torch.float64)
        ctx.save_for_backward(pull, push)
        return -total.to(positives.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        pull, push = ctx.saved_tensors
        return -grad_output * pull, grad_output * push, None
