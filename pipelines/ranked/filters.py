"""Filters as views: what a `FilterSpec` makes of stored lists, without a teacher and without a copy.

Enters: lists as flat arrays, which candidates are positives, the settings. Leaves: a reason per candidate. Lists are
judged one by one, so it does not matter how many come at a time.

1. Positives stay. With `above_positive: relabel` what the teacher puts above the positive joins them.
2. Every other candidate is judged by itself, against the stored list: above the positive, margin, rank window, score
   band, box plot (over the list's candidates that are no positives).
3. What remains is compared with each other, so that a dropped candidate shadows none: same text, then ties.
4. Lists that keep too few are dropped.

Sources: margins as in sentence-transformers 6 (`mine_hard_negatives`; pos - |pos| * m since its issue 3819) and
NV-Retriever (arXiv 2407.15831); box plot UNPG (arXiv 2203.11593, quartiles as in `objectives.iqr_filter`); relabelling
RLHN (arXiv 2505.16967).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.verdicts import Reason, Verdicts
from pipelines.spec_sections.filters import FilterSpec, RankWindow

__all__ = ["TextOf", "anchors", "judge"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
TextOf = Callable[[npt.NDArray[np.object_]], Sequence[str]]
"""Texts of documents, given distinct ids."""


def judge(columns: ListColumns, spec: FilterSpec, *, positive: Bools, text_of: TextOf | None = None) -> Verdicts:
    """Decide about every candidate.

    Args:
        columns: Q lists with C candidates.
        spec: the settings.
        positive: [C], True where a candidate is a positive of its list (`positives`); they are never dropped, unless
            their whole list is.
        text_of: needed by `same_text: drop` alone, and asked for candidates that the other filters leave.

    Raises:
        RankedListsError: a logit is not finite, a list is not in teacher order, `positive` has another length, or
            texts are needed and not given.
    """
    logit = columns.teacher_logit.astype(np.float64)
    _check(columns, logit, positive)
    reason = np.where(positive, np.int8(Reason.POSITIVE), np.int8(Reason.KEPT))
    anchor = anchors(columns, positive, margin_from=spec.margin_from)[columns.list_of]
    above = logit > anchor + (spec.tie_margin or 0.0)  # NaN, a list without a positive, compares as False
    if spec.above_positive == "relabel":
        reason[above & ~positive] = Reason.RELABELLED
    for why, drops in _judged_alone(columns, spec, logit, anchor, above, reason == Reason.KEPT):
        reason[drops & (reason == Reason.KEPT)] = why
    if spec.same_text == "drop":
        reason[_copies(columns, reason, text_of)] = Reason.SAME_TEXT
    if spec.tie_margin is not None:
        reason[_tied(columns, logit, reason, spec.tie_margin)] = Reason.TIED
    if spec.min_candidates is not None:
        kept = reason <= Reason.RELABELLED
        short = np.bincount(columns.list_of[kept], minlength=len(columns)) < spec.min_candidates
        reason[kept & short[columns.list_of]] = Reason.SHORT_LIST
    return Verdicts(reason)


def anchors(columns: ListColumns, positive: Bools, *, margin_from: Literal["lowest", "highest"]) -> Floats:
    """The logit of the positive that a list's margins are measured from, [Q]; NaN where a list has none."""
    anchor = np.full(len(columns), np.nan)
    pick = np.fmin if margin_from == "lowest" else np.fmax
    pick.at(anchor, columns.list_of[positive], columns.teacher_logit[positive].astype(np.float64))
    return anchor


def _check(columns: ListColumns, logit: Floats, positive: Bools) -> None:
    if positive.shape != logit.shape:
        raise RankedListsError(f"filters got {len(positive)} positive flags for {len(logit)} candidates")
    wrong = np.flatnonzero(~np.isfinite(logit))
    if len(wrong):
        raise RankedListsError(f"{_place(columns, wrong[0])} has a logit that is not finite: {logit[wrong[0]]}")
    rises = 1 + np.flatnonzero((np.diff(logit) > 0) & (np.diff(columns.list_of) == 0))
    if len(rises):
        raise RankedListsError(f"{_place(columns, rises[0])} has a higher logit than the candidate before it")


def _place(columns: ListColumns, candidate: int) -> str:
    return f"query {columns.query_id[columns.list_of[candidate]]!r}: document {columns.doc_id[candidate]!r}"


def _judged_alone(
    columns: ListColumns, spec: FilterSpec, logit: Floats, anchor: Floats, above: Bools, negative: Bools
) -> Iterator[tuple[Reason, Bools]]:
    """What each filter would drop, in the order of `Reason`; whoever reads it leaves the positives alone."""
    bar = _bar(spec, anchor)
    if spec.measures_from_positive:
        yield Reason.ABOVE_POSITIVE, above
        yield Reason.WITHIN_MARGIN, logit > bar
    if spec.rank_window is not None:
        yield Reason.OUTSIDE_RANK_WINDOW, _outside(columns, spec.rank_window)
    if spec.min_logit is not None:
        yield Reason.OUTSIDE_SCORE_BAND, logit < spec.min_logit
    if spec.max_logit is not None:
        yield Reason.OUTSIDE_SCORE_BAND, logit > spec.max_logit
    if spec.iqr_whisker is not None:
        yield Reason.OUTLIER, _outliers(columns, logit, negative, spec.iqr_whisker)


def _bar(spec: FilterSpec, anchor: Floats) -> Floats:
    """The highest logit that the margins allow a negative, [C]; infinite without a margin, NaN without a positive."""
    bar = np.where(np.isnan(anchor), np.nan, np.inf)
    if spec.absolute_margin is not None:
        bar = np.minimum(bar, anchor - spec.absolute_margin)
    relative = spec.relative_margin if spec.percent_of_positive is None else 1 - spec.percent_of_positive
    if relative is not None:
        # Not anchor * (1 - relative): below 0 that lies above the positive, and lets through what should be dropped.
        bar = np.minimum(bar, anchor - np.abs(anchor) * relative)
    return bar


def _outside(columns: ListColumns, window: RankWindow) -> Bools:
    rank: npt.NDArray[np.int64] = columns.rank
    if window.by != "teacher":
        rank = (columns.dense_rank if window.by == "dense" else columns.bm25_rank).astype(np.int64)
    rank = rank + 1  # stored from 0, set and shown from 1; NO_RANK becomes 0, before every window
    outside: Bools = rank < window.first
    return outside if window.last is None else outside | (rank > window.last)


def _outliers(columns: ListColumns, logit: Floats, negative: Bools, whisker: float) -> Bools:
    """Negatives beyond the whiskers of their list's negatives."""
    num = np.bincount(columns.list_of[negative], minlength=len(columns))
    some = np.flatnonzero(num)
    last = np.cumsum(num)[some] - 1  # the list's lowest: candidates stand best first
    low, high = (logit[negative][last - quarters * num[some] // 4] for quarters in (1, 3))
    reach = whisker * (high - low)
    least, most = (np.full(len(columns), np.nan) for _ in range(2))
    least[some], most[some] = low - reach, high + reach
    return negative & ((logit < least[columns.list_of]) | (logit > most[columns.list_of]))


def _copies(columns: ListColumns, reason: npt.NDArray[np.int8], text_of: TextOf | None) -> npt.NDArray[np.int64]:
    """Remaining candidates, given positives excepted, that read as a positive or as one that stands before them."""
    if text_of is None:
        raise RankedListsError("filters.same_text: 'drop' compares texts, and the documents are not at hand")
    left = np.flatnonzero(reason <= Reason.RELABELLED)
    documents = pa.array(columns.doc_id[left], type=pa.string()).dictionary_encode()
    seen: dict[str, int] = {}
    codes = [seen.setdefault(text, len(seen)) for text in text_of(documents.dictionary.to_numpy(zero_copy_only=False))]
    text = np.array(codes, dtype=np.int64)[documents.indices.to_numpy()]
    turn = np.array([2, 0, 1])[reason[left]]  # of those that read the same: positives, then relabelled, then the rest
    order = np.lexsort((left, turn, text, columns.list_of[left]))
    again = np.diff(columns.list_of[left][order], prepend=-1) == 0
    again &= np.diff(text[order], prepend=-1) == 0
    copies: npt.NDArray[np.int64] = left[order[again & (turn[order] > 0)]]
    return copies


def _tied(columns: ListColumns, logit: Floats, reason: npt.NDArray[np.int8], margin: float) -> npt.NDArray[np.int64]:
    """Remaining negatives within `margin` of a positive, or of a better negative that is not tied itself."""
    negative = reason == Reason.KEPT
    near = _near_a_positive(columns, logit, (reason == Reason.POSITIVE) | (reason == Reason.RELABELLED), margin)
    rest = np.flatnonzero(negative & ~near)
    num = np.bincount(columns.list_of[rest], minlength=len(columns))
    start = np.cumsum(num) - num
    leader = np.full(len(columns), np.inf)  # the last that stayed
    tied = np.zeros(len(rest), dtype=np.bool_)
    for place in range(num.max(initial=0)):  # down all lists at once
        lists = np.flatnonzero(num > place)
        at = start[lists] + place
        value = logit[rest[at]]
        tied[at] = leader[lists] - value <= margin
        leader[lists] = np.where(tied[at], leader[lists], value)
    return np.concatenate([np.flatnonzero(negative & near), rest[tied]])


def _near_a_positive(columns: ListColumns, logit: Floats, positive: Bools, margin: float) -> Bools:
    """Within `margin` of the nearest positive before or behind it: candidates stand in the order of their logits."""
    total = columns.num_candidates
    place = np.arange(total)
    before = np.maximum.accumulate(np.where(positive, place, -1))
    behind = np.minimum.accumulate(np.where(positive, place, total)[::-1])[::-1]
    near: Bools = np.zeros(total, dtype=np.bool_)
    here = before >= columns.offsets[columns.list_of]
    near[here] = logit[before[here]] - logit[here] <= margin
    here = behind < columns.offsets[columns.list_of + 1]
    near[here] |= logit[here] - logit[behind[here]] <= margin
    return near
