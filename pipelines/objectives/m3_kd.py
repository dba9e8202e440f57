"""M3 distillation: each candidate of the list in turn is the positive of the whole batch, weighted by the teacher.

    p = softmax(t / teacher_temperature) over the real candidates c_i1 ... c_iK of query i, in list order
    L = mean_i sum_k p_ik * - log( exp(s_i,c_ik / temperature) / sum_d exp(s_i,d / temperature) )
    d runs over c_ik, the candidates after it in the list, and every document of the batch that is not in the list

Candidates that had their turn leave the denominator of the later ones. So two candidates that the teacher likes do not
push each other down both ways, and everything in the list is lifted above the rest of the batch. Where CPRD takes the
teacher's order and a prefix of it, this takes list order and the teacher's probabilities: a soft cousin. Documents that
are known to be `relevant` to the query and are not in its list are in no denominator.

Source: FlagEmbedding (BGE), official code: `m3_kd_loss` of `distill_loss`, with the columns q * g + i of its batch;
`relevant`, padding and the teacher's temperature are dualdistill's. The code adds the most negative float to candidates
that had their turn, which is the same as leaving them out. It runs on the model's scores, `temperature: 1`.

Use when: distilling into a student that must also tell the list from the batch, in one term and without labels; it then
replaces `list_kl` and `info_nce` together, as in FlagEmbedding.

Reported: no number of the paper could be read.

Edges: list order matters, and jobs keep lists in the teacher's order. A query with one real candidate adds 0 with zero
gradient (a softmax over one says nothing about it); one with none is not counted in the mean. A candidate may stand in
a list only once.
"""

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_positive_number, score_lists
from pipelines.objectives.masked import masked_log_softmax, zero_probability_logit
from pipelines.objectives.score_batch import score_batch

__all__ = ["m3_kd_loss"]


def m3_kd_loss(
    batch_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    *,
    columns: Tensor,
    relevant: Tensor | None = None,
    temperature: float = 0.05,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy of every candidate against what follows it and the batch, weighted by the teacher.

    Args:
        batch_scores: [queries, documents], similarities of the student before the temperature.
        teacher_scores: [queries, candidates], raw teacher logits; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all.
        columns: [queries, candidates] int64, the candidate's column in `batch_scores`; anything where `mask` is False.
        relevant: [queries, documents] bool, no negatives of that query; None = none but its own list.
        temperature: divides student scores.
        teacher_temperature: divides teacher scores.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two candidates, NaN or infinite scores, a column out of
            range or twice in one list, an impossible parameter.
    """
    scores = score_batch("m3_kd", batch_scores, relevant)
    columns = _own_columns(columns, mask, scores, teacher_scores)
    lists = score_lists("m3_kd", scores.gather(1, columns), teacher_scores, mask, min_width=2)
    require_positive_number("m3_kd", "temperature", temperature)
    require_positive_number("m3_kd", "teacher_temperature", teacher_temperature)

    mask = lists.mask
    logits, target = scores.to(lists.student.dtype) / temperature, lists.student / temperature
    nothing = zero_probability_logit(logits.dtype)
    own = torch.zeros_like(logits, dtype=torch.int8).scatter_add(1, columns, mask.to(torch.int8)).bool()
    no_rival = own if relevant is None else own | relevant
    others = logits.masked_fill(no_rival, nothing).logsumexp(dim=1, keepdim=True)

    from_here_on = target.masked_fill(~mask, nothing).flip(1).logcumsumexp(dim=1).flip(1)
    probability = masked_log_softmax(lists.teacher.to(logits.dtype) / teacher_temperature, mask).exp()
    terms = probability * (torch.logaddexp(from_here_on, others) - target)
    counted = mask & (mask.sum(dim=1, keepdim=True) > 1)
    return torch.where(counted, terms, 0).sum() / mask.any(dim=1).sum().clamp(min=1)


def _own_columns(columns: Tensor, mask: Tensor | None, scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Checked columns of each list, 0 at padding."""
    if columns.dtype != torch.int64 or columns.ndim != 2 or columns.shape != teacher_scores.shape:
        raise ObjectiveError(
            f"m3_kd: columns must be int64 of shape {tuple(teacher_scores.shape)}, "
            f"got {columns.dtype} of shape {tuple(columns.shape)}"
        )
    if len(scores) != len(columns):
        raise ObjectiveError(
            f"m3_kd: batch_scores {tuple(scores.shape)} and teacher_scores {tuple(teacher_scores.shape)} "
            "must have one row per query"
        )
    if mask is None:
        mask = torch.ones_like(columns, dtype=torch.bool)
    require_bool_like("m3_kd", "mask", mask, columns)
    outside = mask & ((columns < 0) | (columns >= scores.shape[1]))
    if bool(outside.any()):
        row, place = (int(i) for i in outside.nonzero()[0])
        raise ObjectiveError(
            f"m3_kd: columns[{row}, {place}] is {int(columns[row, place])}, outside the {scores.shape[1]} documents"
        )
    # Padding gets numbers of its own below 0, so that it never looks like a document that stands there twice.
    apart = torch.where(mask, columns, -1 - torch.arange(columns.shape[1], device=columns.device)).sort(dim=1).values
    twice = (apart[:, 1:] == apart[:, :-1]).any(dim=1)
    if bool(twice.any()):
        raise ObjectiveError(f"m3_kd: the list of row {int(twice.nonzero()[0])} names one document twice")
    return columns.masked_fill(~mask, 0)
