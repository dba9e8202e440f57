"""Decoupled softmax: every positive of a query competes with the query's negatives, and not with its other positives.

    P_i = documents relevant to query i, N_i = those that are not, s divided by the temperature
    decoupled:  L = mean_i mean_(p in P_i) of - log( exp s_ip / (exp s_ip + sum_(n in N_i) exp s_in) )
    softmax:    L = mean_i sum_(p in P_i)  of - log( exp s_ip / sum_(all j) exp s_ij )
    binary:     L = mean_i mean_(all j)    of - log sigmoid(s_ij where j in P_i, -s_ij elsewhere)

With several positives the ordinary softmax pushes a well placed positive down because the others have to share the
probability with it. The decoupled form has no such conflict: its minimum is every positive above every negative. The
other two are the baselines that the paper compares with. The means run over the queries that have a positive.

Forms: the paper leaves the other positives out of the denominator; the official code sets them to -100, a leak of
e^-100 that says nothing as long as scores stay above about -60. The `softmax` form is not divided by the number of
positives, as in that code.

Source: arXiv 2310.10636 (ICLR 2024), official code nilesh2797/DEXML: `SimLoss` with `decoupled-softmax`, `softmax` and
`bce`.

Use when: queries have several positives, from labels or from the teacher; with one positive each it is `info_nce`.

Reported: P@1/P@5 58.40/45.46 on LF-AmazonTitles-1.3M, 85.78/50.53 on LF-Wikipedia-500K, 42.52/20.64 on
LF-AmazonTitles-131K, 86.78/60.19 on EURLex-4K (README); up to 2% P@1 over the state of the art with 20 times fewer
parameters (abstract).

Edges: a query without a positive is left out; a batch of those is 0 with zero gradient. A query whose documents are all
relevant adds 0 in the decoupled form.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite, require_positive_number
from pipelines.objectives.masked import zero_probability_logit
from pipelines.objectives.score_batch import score_batch

__all__ = ["decoupled_softmax_loss"]


def decoupled_softmax_loss(
    batch_scores: Tensor,
    relevant: Tensor,
    *,
    relevance_weights: Tensor | None = None,
    form: Literal["decoupled", "softmax", "binary"] = "decoupled",
    temperature: float = 0.05,
) -> Tensor:
    """Cross-entropy of each relevant document, averaged over the queries that have one.

    Args:
        batch_scores: [queries, documents], the student's similarities with every document of the batch.
        relevant: [queries, documents] bool, all positives of each query.
        relevance_weights: [queries, documents] >= 0, multiplies the term of each positive (graded relevance) in the
            first two forms, without renormalising; None = 1. No step of a job offers it.
        form: which of the three equations.
        temperature: divides the scores.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite scores or weights, weights
            in the binary form, an impossible parameter.
    """
    name = "decoupled_softmax"
    logits = score_batch(name, batch_scores, relevant)
    require_positive_number(name, "temperature", temperature)
    logits = logits / temperature
    counts = relevant.sum(dim=1)
    queries = (counts > 0).sum().clamp(min=1)
    if form == "binary":
        if relevance_weights is not None:
            raise ObjectiveError(f"{name}: form 'binary' has no weights")
        losses = -functional.logsigmoid(torch.where(relevant, logits, -logits)).sum(dim=1)
        return losses.masked_fill(counts == 0, 0).sum() / (queries * logits.shape[1])

    rows, columns = relevant.nonzero(as_tuple=True)
    positives = logits[rows, columns]
    if form == "decoupled":
        negatives = logits.masked_fill(relevant, zero_probability_logit(logits.dtype)).logsumexp(dim=1)
        terms = -functional.logsigmoid(positives - negatives[rows]) / counts[rows]
    elif form == "softmax":
        terms = logits.logsumexp(dim=1)[rows] - positives
    else:
        raise ObjectiveError(f"{name}: unknown form {form!r}")
    if relevance_weights is not None:
        terms = terms * _checked_weights(name, relevance_weights, logits)[rows, columns]
    return terms.sum() / queries


def _checked_weights(name: str, weights: Tensor, scores: Tensor) -> Tensor:
    if weights.shape != scores.shape or not weights.is_floating_point():
        raise ObjectiveError(
            f"{name}: relevance_weights must be floating of shape {tuple(scores.shape)}, "
            f"got {weights.dtype} of shape {tuple(weights.shape)}"
        )
    require_finite(name, "relevance_weights", weights)
    if bool((weights < 0).any()):
        raise ObjectiveError(f"{name}: relevance_weights has a negative value, {float(weights.min())}")
    return weights.to(scores.dtype)
