"""Binary KL: each pair by itself, the student's probability of relevance should be the teacher's.

    S = s / temperature + bias      T = t / teacher_temperature      Bern(x) a coin with the probability sigmoid(x)
    binary_kl:       L = mean_i sum_j KL( Bern(T_ij) || Bern(S_ij) )
    binary_kl_norm:  L = mean_i sum_j KL( Bern(0) || Bern(S_ij - T_ij) )

The second is symmetric in the difference of the two logits and 0 only where they are equal. The first says almost
nothing where a confident teacher saturates (all logits beyond +-10 are the same probability); the second still pulls
the student's logit to the teacher's there. Both learn the level of every score: an offset per query costs, unlike in a
softmax over the list.

Source: Dual-Head Knowledge Distillation, arXiv 2411.08937, official code: `BinaryKL` and `BinaryKLNorm`; its training
script uses the second. The code multiplies by the temperature squared (`scale_by_temperature_squared`) and clamps
probabilities to [1e-8, 1 - 1e-8] (`probability_clamp`, which also stops the gradient outside); neither is needed here,
where everything is computed from logarithms.

Use when: the teacher was trained with a binary loss and its logits are calibrated, and scores must mean the same for
every query (thresholds, fused result lists); beside a list objective, at a small weight. Write
`learn: [temperature, bias]`: most pairs are irrelevant, their logits far below 0, and the cosines of a normalising
student, whichever head they come from, have neither that level nor that range of their own. Start `bias` near the logit
of an irrelevant pair (say -5), for in one epoch it does not get far. With a teacher trained listwise, whose logits have
no zero, the quickstart's student collapsed at the defaults (nDCG@10 .026 where list_kl has .913).

Reported: no number of the paper could be read.

Edges: a query with one real candidate adds 0 with zero gradient, as in every list objective here; one with none is not
counted in the mean.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import ScoreLists, require_positive_number, score_lists

__all__ = ["binary_kl_loss", "binary_kl_norm_loss"]


def binary_kl_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    teacher_temperature: float = 1.0,
    bias: float | Tensor = 0.0,
    scale_by_temperature_squared: bool = False,
    probability_clamp: float | None = None,
) -> Tensor:
    """Kullback-Leibler divergence between two coins per pair, in nats, summed over each list, mean over queries.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides student scores; a 0-dim tensor receives a gradient.
        teacher_temperature: divides teacher scores.
        bias: added to the student's logits; a 0-dim tensor receives a gradient.
        scale_by_temperature_squared: multiply by `temperature` squared, as the official code does; a constant, even if
            the temperature is learned.
        probability_clamp: keep all probabilities this far from 0 and 1 (official code: 1e-8); beyond it the student
            receives no gradient. None: exact.

    Returns:
        Scalar >= 0 up to rounding.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    student, teacher, lists = _logits(
        "binary_kl", student_scores, teacher_scores, mask, temperature, teacher_temperature, bias, probability_clamp
    )
    teacher_yes, teacher_no = _log_probabilities(teacher, probability_clamp)
    student_yes, student_no = _log_probabilities(student, probability_clamp)
    terms = teacher_yes.exp() * (teacher_yes - student_yes) + teacher_no.exp() * (teacher_no - student_no)
    return _mean_over_queries(terms, lists, _factor(temperature, scaled=scale_by_temperature_squared))


def binary_kl_norm_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    teacher_temperature: float = 1.0,
    bias: float | Tensor = 0.0,
    scale_by_temperature_squared: bool = False,
    probability_clamp: float | None = None,
) -> Tensor:
    """Divergence of a fair coin from the one whose logit is student minus teacher; arguments as in `binary_kl_loss`.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides student scores; a 0-dim tensor receives a gradient.
        teacher_temperature: divides teacher scores.
        bias: added to the student's logits; a 0-dim tensor receives a gradient.
        scale_by_temperature_squared: multiply by `temperature` squared, as the official code does; a constant, even if
            the temperature is learned.
        probability_clamp: keep the coin's probability this far from 0 and 1 (official code: 1e-8). None: exact.

    Returns:
        Scalar >= 0 up to rounding, exactly 0 where all logits agree.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    student, teacher, lists = _logits(
        "binary_kl_norm",
        student_scores,
        teacher_scores,
        mask,
        temperature,
        teacher_temperature,
        bias,
        probability_clamp,
    )
    yes, no = _log_probabilities(student - teacher, probability_clamp)
    half = functional.logsigmoid(torch.zeros((), dtype=yes.dtype, device=yes.device))  # rounds as `yes` does at 0
    return _mean_over_queries(half - (yes + no) / 2, lists, _factor(temperature, scaled=scale_by_temperature_squared))


def _logits(
    objective: str,
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None,
    temperature: float | Tensor,
    teacher_temperature: float,
    bias: float | Tensor,
    clamp: float | None,
) -> tuple[Tensor, Tensor, ScoreLists]:
    lists = score_lists(objective, student_scores, teacher_scores, mask, min_width=2)
    require_positive_number(objective, "temperature", temperature)
    require_positive_number(objective, "teacher_temperature", teacher_temperature)
    if clamp is not None and not 0 < clamp < 0.5:
        raise ObjectiveError(f"{objective}: probability_clamp must be between 0 and 0.5, got {clamp}")
    if not abs(float(bias.detach()) if isinstance(bias, Tensor) else bias) < float("inf"):
        raise ObjectiveError(f"{objective}: bias must be a finite number, got {bias}")
    return lists.student / temperature + bias, lists.teacher.to(lists.student.dtype) / teacher_temperature, lists


def _log_probabilities(logits: Tensor, clamp: float | None) -> tuple[Tensor, Tensor]:
    """Logarithms of sigmoid and of its complement; clamped there, since 1 - 1e-8 is 1 in float32."""
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    if clamp is None:
        return yes, no
    low, high = math.log(clamp), math.log1p(-clamp)
    return yes.clamp(low, high), no.clamp(low, high)


def _factor(temperature: float | Tensor, *, scaled: bool) -> float:
    """The temperature squared, where wanted; without gradient, or a learned one would fall to shrink the loss."""
    if not scaled:
        return 1.0
    return float(temperature.detach() if isinstance(temperature, Tensor) else temperature) ** 2


def _mean_over_queries(terms: Tensor, lists: ScoreLists, factor: float) -> Tensor:
    counted = lists.mask & (lists.mask.sum(dim=1, keepdim=True) > 1)
    total = torch.where(counted, terms, 0).sum()
    return total * factor / lists.num_lists
