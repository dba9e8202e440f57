"""What filters would leave of a round's lists, counted before any training is paid for.

Enters: the lists of a round, twice, some at a time; filters; the rule that says what a positive is. Leaves: a
`FilterReport`: counts for the filters given and for each of them with one setting changed, and histograms. The first
pass finds where the teacher's logits lie, the second counts. Memory holds one block of lists and the counts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.data_file import merge_row_groups
from pipelines.ranked.filter_sweep import Spread, sweep
from pipelines.ranked.filters import TextOf, anchors, judge
from pipelines.ranked.histogram import Histogram, StreamedHistogram, histograms
from pipelines.ranked.positives import PositiveRule, positives
from pipelines.ranked.verdicts import Reason, Verdicts
from pipelines.spec_sections.filters import FilterSpec

__all__ = ["FilterReport", "NegativesPerList", "Outcome", "filter_report"]

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
_SHOWN_BINS = 24
_TRAINABLE = 2


@dataclass(frozen=True)
class NegativesPerList:
    """Of the lists that stay; 0 where none does."""

    min: int
    median: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one choice of filters leaves."""

    setting: str
    """What is changed, or "as given"."""
    filters: dict[str, Any]
    num_kept: int
    """Candidates, positives included."""
    share_kept: float
    """Of all candidates, 0 to 1."""
    num_relabelled: int
    num_lists_dropped: int
    """Lists that keep fewer than two candidates, which training skips; an empty list is one of them."""
    negatives_per_list: NegativesPerList
    reasons: dict[str, int]
    """Candidates by `Reason.label`, all of them."""


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """Of one round of one job."""

    num_lists: int
    num_candidates: int
    num_positives: int
    num_lists_without_positive: int
    given: Outcome
    sweep: tuple[Outcome, ...]
    positive_logits: Histogram
    negative_logits: Histogram
    """Of all candidates that are no positives, dropped or not; in the bins of `positive_logits`."""
    margins: Histogram
    """The positive's logit minus the candidate's; below 0: the teacher puts it above the positive."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


def filter_report(
    read: Callable[[], Iterable[pa.Table]], spec: FilterSpec, *, rule: PositiveRule, text_of: TextOf | None = None
) -> FilterReport:
    """Count what `spec`, and `spec` with one setting changed, leave of a round.

    Args:
        read: begins to read the round's lists: tables with whole lists, e.g. `RankedLists.chunks`. Called twice.
        spec: the filters.
        rule: what counts as a positive.
        text_of: texts of documents; None leaves `same_text` out of what is tried.

    Raises:
        RankedListsError: there are no lists, `spec` compares texts and there are none, or a list cannot be judged.
    """
    facts = _Facts()
    for columns in _blocks(read):
        facts.add(columns, positives(columns, rule), spec)
    if not facts.num_lists:
        raise RankedListsError("there are no lists to report on")
    tried = sweep(spec, facts.spread, with_texts=text_of is not None)
    tallies = {filters: _Tally() for filters in (spec, *(filters for _, filters in tried))}
    for columns in _blocks(read):
        positive = positives(columns, rule)
        texts = None if text_of is None else _looked_up_once(columns, text_of)
        for filters, tally in tallies.items():
            tally.add(columns, judge(columns, filters, positive=positive, text_of=texts))
    of_positives, of_negatives = histograms([facts.positive_logits, facts.negative_logits], most_bins=_SHOWN_BINS)
    (of_margins,) = histograms([facts.margins], most_bins=_SHOWN_BINS)
    return FilterReport(
        num_lists=facts.num_lists,
        num_candidates=facts.num_candidates,
        num_positives=facts.num_positives,
        num_lists_without_positive=facts.num_lists_without_positive,
        given=tallies[spec].outcome("as given", spec),
        sweep=tuple(tallies[filters].outcome(setting, filters) for setting, filters in tried),
        positive_logits=of_positives,
        negative_logits=of_negatives,
        margins=of_margins,
    )


def _blocks(read: Callable[[], Iterable[pa.Table]]) -> Iterator[ListColumns]:
    """Chunks joined: what is called for every choice of filters should not be called for a handful of lists."""
    return (ListColumns(rows) for rows in merge_row_groups(iter(read())))


def _looked_up_once(columns: ListColumns, text_of: TextOf) -> TextOf:
    """Stands in for `text_of` on one block, for every choice of filters: equal words for equal texts."""
    documents = pa.array(columns.doc_id, type=pa.string()).unique().to_numpy(zero_copy_only=False)
    seen: dict[str, str] = {}
    words = [seen.setdefault(text, str(len(seen))) for text in text_of(documents)]
    word = dict(zip(documents.tolist(), words, strict=True))
    return lambda ids: [word[doc_id] for doc_id in ids]


@dataclass
class _Facts:
    """What holds for any filters."""

    num_lists: int = 0
    num_candidates: int = 0
    num_positives: int = 0
    num_lists_without_positive: int = 0
    longest_list: int = 0
    positive_logits: StreamedHistogram = field(default_factory=StreamedHistogram)
    negative_logits: StreamedHistogram = field(default_factory=StreamedHistogram)
    margins: StreamedHistogram = field(default_factory=StreamedHistogram)

    def add(self, columns: ListColumns, positive: Bools, spec: FilterSpec) -> None:
        judge(columns, FilterSpec(), positive=positive)  # refuses lists that cannot be counted
        anchor = anchors(columns, positive, margin_from=spec.margin_from)
        logit = columns.teacher_logit.astype(np.float64)
        margin = anchor[columns.list_of] - logit
        self.num_lists += len(columns)
        self.num_candidates += columns.num_candidates
        self.num_positives += int(positive.sum())
        self.num_lists_without_positive += int(np.isnan(anchor).sum())
        self.longest_list = max(self.longest_list, int(columns.lengths.max(initial=0)))
        self.positive_logits.add(logit[positive])
        self.negative_logits.add(logit[~positive])
        self.margins.add(margin[~positive & ~np.isnan(margin)])

    @property
    def spread(self) -> Spread:
        return Spread(self.negative_logits, self.margins, self.longest_list)


class _Tally:
    """Counts of one choice of filters."""

    def __init__(self) -> None:
        self._reasons = dict.fromkeys(Reason, 0)
        self._num_lists = 0
        self._lists_by_negatives: Counts = np.zeros(1, dtype=np.int64)
        """[n]: how many lists that stay have n negatives."""

    def add(self, columns: ListColumns, verdicts: Verdicts) -> None:
        for reason, count in verdicts.counts().items():
            self._reasons[reason] += count
        self._num_lists += len(columns)
        kept, negatives = (
            np.bincount(columns.list_of[flags], minlength=len(columns)) for flags in (verdicts.kept, verdicts.negative)
        )
        here = np.bincount(negatives[kept >= _TRAINABLE], minlength=len(self._lists_by_negatives))
        here[: len(self._lists_by_negatives)] += self._lists_by_negatives
        self._lists_by_negatives = here

    def outcome(self, setting: str, spec: FilterSpec) -> Outcome:
        num_kept = sum(self._reasons[reason] for reason in (Reason.KEPT, Reason.POSITIVE, Reason.RELABELLED))
        total = sum(self._reasons.values())
        return Outcome(
            setting=setting,
            filters=spec.model_dump(mode="json"),
            num_kept=num_kept,
            share_kept=num_kept / total if total else 0.0,
            num_relabelled=self._reasons[Reason.RELABELLED],
            num_lists_dropped=self._num_lists - int(self._lists_by_negatives.sum()),
            negatives_per_list=_per_list(self._lists_by_negatives),
            reasons={reason.label: count for reason, count in self._reasons.items()},
        )


def _per_list(lists_by_negatives: Counts) -> NegativesPerList:
    seen = np.cumsum(lists_by_negatives)
    lists = int(seen[-1])
    if not lists:
        return NegativesPerList(0, 0.0, 0.0)
    places = (0, (lists - 1) // 2, lists // 2)  # in order of their negatives: the first, and the two in the middle
    least, lower, upper = (int(np.searchsorted(seen, place, side="right")) for place in places)
    mean = float(lists_by_negatives @ np.arange(len(lists_by_negatives))) / lists
    return NegativesPerList(least, (lower + upper) / 2, mean)
