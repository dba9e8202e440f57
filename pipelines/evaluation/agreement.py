"""How well do one query's scores agree with judgements or with the teacher, over the whole list and not its top?

Enters: scores of a list and what they should say about it. Leaves: one number, by scikit-learn's and scipy's
definitions. Useful for teachers and rankers, whose scores are thresholded or distilled; for search use
`pipelines.evaluation.metrics`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pipelines.errors import PipelineError

__all__ = ["kendall_tau_b", "roc_auc", "spearman"]


def roc_auc(relevant: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a relevant item scores above one that is not; an equal score counts one half.

    Args:
        relevant: [items] 0 or 1.
        scores: [items].

    Raises:
        PipelineError: lengths differ, NaN, labels other than 0 and 1, or only one kind of label.
    """
    labels, values = _pair(relevant, scores)
    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((labels == 0).sum())
    if num_positive + num_negative != len(labels) or not num_positive or not num_negative:
        raise PipelineError(
            f"AUC needs labels 0 and 1, both of them: {num_positive} one(s), {num_negative} zero(s) of {len(labels)}"
        )
    ranks = stats.rankdata(values)  # average ranks: each tie between the two kinds counts one half
    above = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


def spearman(left: ArrayLike, right: ArrayLike) -> float:
    """Spearman's rank correlation, average ranks for ties.

    Raises:
        PipelineError: lengths differ, fewer than 2 items, NaN, or a side on which all are tied.
    """
    return float(stats.spearmanr(*_varied(left, right)).statistic)


def kendall_tau_b(left: ArrayLike, right: ArrayLike) -> float:
    """Kendall's tau-b: concordant minus discordant pairs, corrected for ties on either side.

    Raises:
        PipelineError: lengths differ, fewer than 2 items, NaN, or a side on which all are tied.
    """
    return float(stats.kendalltau(*_varied(left, right), variant="b").statistic)


def _varied(left: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pair = _pair(left, right)
    for name, values in zip(("first", "second"), pair, strict=True):
        if len(np.unique(values)) < 2:
            raise PipelineError(f"a rank correlation is undefined: the {name} side has {len(values)} equal item(s)")
    return pair


def _pair(left: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise PipelineError(f"agreement needs two lists of one length, got {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise PipelineError(f"agreement of lists with NaN: {int(np.isnan(first).sum() + np.isnan(second).sum())} found")
    return first, second
