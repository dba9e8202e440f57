"""What each query has cost the student lately: a moving average per query that survives a checkpoint.

Enters: per step the rows of its queries and their losses. Leaves: averages, and per epoch the quantile of each query
among those seen, which pacing and the choice of the next queries read.

    loss      l_i = KL( softmax(t_i / teacher_temperature) || softmax(s_i / temperature) )   over the list of query i
    average   a_i = l_i the first time, then decay a_i + (1 - decay) l_i
    quantile  q_i = (rank of a_i among the n seen, from 1, ties share the mean rank - 1/2) / n

The quantiles of an epoch are frozen: they are part of the state, computed once when the epoch begins. Otherwise a run
that resumes in the middle of an epoch would see losses that the uninterrupted one did not yet know when it chose.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_finite, require_positive_number, score_lists
from pipelines.objectives.masked import masked_log_softmax

__all__ = ["UNSEEN", "QueryLosses", "frozen", "list_losses"]

UNSEEN = -1.0
"""The quantile of a query whose loss is not known."""


class QueryLosses(nn.Module):
    """Averages over `num_queries` rows; everything is in the buffers, so a `state_dict` restores it exactly.

    Args:
        num_queries: rows there are.
        decay: how much of the old average stays, 0 (the last loss alone) to below 1.

    Raises:
        ValueError: an impossible number.
    """

    average: Tensor
    """float32 [num_queries], nats; 0 where nothing was seen."""
    seen: Tensor
    """bool [num_queries]."""
    quantiles: Tensor
    """float32 [num_queries] of epoch `frozen_epoch`, `UNSEEN` where there is none."""
    frozen_epoch: Tensor
    """int64 scalar."""

    def __init__(self, num_queries: int, *, decay: float = 0.7) -> None:
        super().__init__()
        if num_queries < 1 or not 0 <= decay < 1:
            raise ValueError(f"num_queries {num_queries} must be at least 1 and decay {decay} in [0, 1)")
        self._decay = decay
        self.register_buffer("average", torch.zeros(num_queries))
        self.register_buffer("seen", torch.zeros(num_queries, dtype=torch.bool))
        self.register_buffer("quantiles", torch.full((num_queries,), UNSEEN))
        self.register_buffer("frozen_epoch", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, rows: Tensor, losses: Tensor) -> None:
        """Take in one step's losses. A query that stands in the step twice counts once, with its mean.

        Args:
            rows: int64 [Q], of the queries.
            losses: floating [Q], nats.

        Raises:
            ObjectiveError: shapes disagree, a row that does not exist, a loss that is NaN or infinite.
        """
        if rows.dtype != torch.int64 or rows.ndim != 1 or rows.shape != losses.shape:
            raise ObjectiveError(
                f"query_losses: rows must be int64 [Q] and losses [Q], got {rows.dtype} {tuple(rows.shape)} and "
                f"{tuple(losses.shape)}"
            )
        outside = (rows < 0) | (rows >= len(self.average))
        if bool(outside.any()):
            raise ObjectiveError(f"query_losses: row {int(rows[outside][0])} is none of {len(self.average)} queries")
        require_finite("query_losses", "losses", losses)
        rows, losses = rows.to(self.average.device), losses.to(self.average.device, torch.float64)
        distinct = torch.tensor(sorted(set(rows.tolist())), dtype=torch.int64, device=rows.device)
        # A product, not a scatter: sums whose order is left to the device would not be the same after a resume.
        same = (distinct.unsqueeze(1) == rows.unsqueeze(0)).to(torch.float64)
        mean = (same @ losses) / same.sum(dim=1)
        old = torch.where(self.seen[distinct], self.average[distinct].to(torch.float64), mean)
        self.average[distinct] = (self._decay * old + (1 - self._decay) * mean).to(torch.float32)
        self.seen[distinct] = True

    def quantiles_of(self, epoch: int) -> npt.NDArray[np.float32]:
        """The quantiles [num_queries] that epoch `epoch` is paced by; the first call of an epoch freezes them.

        Call it once per epoch, when every step of the epochs before has been taken in. Epoch 0 knows none.

        Raises:
            ValueError: an epoch that is over; its quantiles are gone.
        """
        if epoch < int(self.frozen_epoch):
            raise ValueError(f"quantiles of epoch {epoch} are asked for, those of {int(self.frozen_epoch)} are frozen")
        if epoch > int(self.frozen_epoch):
            self.quantiles.copy_(torch.from_numpy(frozen(self)))
            self.frozen_epoch.fill_(epoch)
        found: npt.NDArray[np.float32] = self.quantiles.cpu().numpy().copy()
        return found


def frozen(losses: QueryLosses) -> npt.NDArray[np.float32]:
    """float32 [num_queries]: each seen query's quantile as of now, in (0, 1); `UNSEEN` for the others."""
    from scipy.stats import rankdata

    seen = losses.seen.cpu().numpy()
    quantiles = np.full(len(seen), UNSEEN, dtype=np.float32)
    if seen.any():
        ranks: npt.NDArray[Any] = rankdata(losses.average.cpu().numpy()[seen], method="average")
        quantiles[seen] = (ranks - 0.5) / len(ranks)
    return quantiles


@torch.no_grad()
def list_losses(
    student_scores: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """How far the student is from the teacher on each list, without gradient: `list_kl_loss` before its mean.

    Args:
        student_scores: [Q, K], similarities before the temperature.
        teacher_logits: [Q, K].
        mask: [Q, K] bool, True = real candidate; None = all.
        temperature: divides student scores.
        teacher_temperature: divides teacher logits.

    Returns:
        float32 [Q] (float64 if either input is), nats, >= 0; 0 for a list of fewer than two.

    Raises:
        ObjectiveError: shapes disagree, fewer than two columns, NaN or infinite scores, an impossible temperature.
    """
    lists = score_lists("query_losses", student_scores, teacher_logits, mask, min_width=2)
    require_positive_number("query_losses", "temperature", temperature)
    require_positive_number("query_losses", "teacher_temperature", teacher_temperature)
    log_student = masked_log_softmax(lists.student / temperature, lists.ragged)
    log_teacher = masked_log_softmax(lists.teacher.to(lists.student.dtype) / teacher_temperature, lists.ragged)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1).clamp(min=0)
