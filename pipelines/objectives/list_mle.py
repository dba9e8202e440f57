"""ListMLE and p-ListMLE: the teacher's whole order should be likely under the student.

    c_i = candidates of query i, sorted by teacher score, best first        n_i = how many there are
    L   = mean_i sum_j w_ij ( log sum_{k >= j} exp(s_i,c_ik / temperature) - s_i,c_ij / temperature )
    ListMLE:   w_ij = 1          p-ListMLE:   w_ij = (2^(n_i - j) - 1) / sum_k (2^(n_i - k) - 1),   j = 1, 2, ...

The likelihood draws the candidates one by one from a softmax over those that are left (Plackett-Luce); p-ListMLE makes
the early draws count most: the first has about half of the weight, each next one half of that. The teacher enters
through its order alone. `list_mle` is `cprd` with every candidate valid and reduction
`sum_over_positions_mean_over_queries`.

Forms: j in the weights of p-ListMLE starts at 1 in sentence-transformers 6.2 and in TensorFlow Ranking, which both
cite the paper, and at 0 in earlier sentence-transformers (commit cad211983f; `weight_ranks`). The weights are
normalised to sum 1 per list, as sentence-transformers does: unnormalised they reach 2^63 on a list of 64. allRank
and earlier sentence-transformers add 1e-10 inside the logarithm; here it is exact.

Source: Xia et al., Listwise approach to learning to rank (ICML 2008); Lan et al., Position-aware ListMLE (UAI 2014);
neither text could be read; code of allegro/allRank and sentence-transformers (`ListMLELoss`, `PListMLELoss`).

Use when: the teacher's order is trusted down to the last candidate (`list_mle`), or mostly at the top
(`p_list_mle`); `cprd` when only a leading part of the list is. `list_mle` is a sum over the list: beside other
terms a weight of about one over the list's length.

Reported: no number of the paper could be read.

Edges: a list with one real candidate adds 0 with zero gradient; one with none is not counted in the mean; a batch of
those is 0. Ties keep the column order, so a fully tied teacher still teaches the order of the columns.
"""

from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import ScoreLists, require_positive_number, score_lists
from pipelines.objectives.masked import teacher_order
from pipelines.objectives.plackett_luce import draw_costs

__all__ = ["list_mle_loss", "p_list_mle_loss"]


def list_mle_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
) -> Tensor:
    """Negative log-likelihood of the teacher's order, summed over each list, averaged over the queries.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides student scores.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    lists = score_lists("list_mle", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("list_mle", "temperature", temperature)
    return _draws(lists, temperature).sum() / lists.mask.any(dim=1).sum().clamp(min=1)


def p_list_mle_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    weight_ranks: Literal["from_one", "from_zero"] = "from_one",
) -> Tensor:
    """Position-weighted mean of the negative log-likelihoods of each list's draws, averaged over the queries.

    Args:
        student_scores: [queries, candidates], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        temperature: divides student scores.
        weight_ranks: what j starts with in the weights 2^(n - j) - 1.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two columns, NaN or infinite scores, an impossible
            parameter.
    """
    lists = score_lists("p_list_mle", student_scores, teacher_scores, mask, min_width=2)
    require_positive_number("p_list_mle", "temperature", temperature)
    if weight_ranks not in ("from_one", "from_zero"):
        raise ObjectiveError(f"p_list_mle: unknown weight_ranks {weight_ranks!r}")
    weights = _position_weights(lists.mask, lists.student.dtype, from_zero=weight_ranks == "from_zero")
    return (_draws(lists, temperature) * weights).sum() / lists.mask.any(dim=1).sum().clamp(min=1)


def _draws(lists: ScoreLists, temperature: float) -> Tensor:
    """[queries, candidates] in teacher order: what each draw costs."""
    return draw_costs(lists.student / temperature, teacher_order(lists.teacher, lists.mask), lists.mask)


def _position_weights(mask: Tensor, dtype: torch.dtype, *, from_zero: bool) -> Tensor:
    """[queries, places], normalised over the first n of each row; all 0 where there is nothing to weigh."""
    # Divided by 2^steps on both sides, for 2^n overflows float32 on lists of 128.
    steps = mask.sum(dim=1, keepdim=True).to(dtype) + (1 if from_zero else 0)
    shrunk = (-steps).exp2()
    places = torch.arange(1, mask.shape[1] + 1, dtype=dtype, device=mask.device)
    weights = ((-places).exp2() - shrunk).clamp(min=0)
    return weights / (1 - (steps + 1) * shrunk).clamp(min=shrunk)
