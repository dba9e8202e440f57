"""Which settings a filter report tries: the filters given, with one setting changed at a time.

Enters: filters, how the round's logits are spread. Leaves: named filters. What is measured in logits is tried where
this teacher's logits lie: some end at 1, others at 12.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.ranked.histogram import StreamedHistogram
from pipelines.spec_sections.filters import FilterSpec

__all__ = ["Spread", "sweep"]

_RELATIVE_MARGINS = (0.0, 0.05, 0.1, 0.25, 0.5)
_MARGIN_SHARES = (0.1, 0.25, 0.5, 0.75)
_MAX_SHARES = (0.99, 0.95, 0.9, 0.75)
_MIN_SHARES = (0.1, 0.25, 0.5)
_FIRST_RANKS = (2, 6, 11, 31)
_LAST_RANKS = (10, 20, 50)
_WHISKERS = (0.5, 1.5, 3.0)
_TIE_MARGINS = (0.0, 0.01, 0.1, 0.5)
_LEAST_CANDIDATES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Spread:
    """What a first pass over the lists found."""

    negative_logits: StreamedHistogram
    margins: StreamedHistogram
    """Logit of the positive minus that of a candidate, in lists that have a positive."""
    longest_list: int


def sweep(spec: FilterSpec, spread: Spread, *, with_texts: bool) -> list[tuple[str, FilterSpec]]:
    """Pairs of what is changed ("relative_margin: 0.05") and the filters with that change.

    A setting that is on is also tried off. What the other settings do not allow is left out, and so is `same_text`
    where no texts are at hand.
    """
    made: list[tuple[str, FilterSpec]] = []
    given = spec.model_dump()
    for field, value, shown in _changes(spec, spread, with_texts=with_texts):
        changed = given | {field: value}
        if field == "relative_margin" and value is not None:
            changed["percent_of_positive"] = None  # another word for the same bar
        try:
            made.append((f"{field}: {shown}", FilterSpec.model_validate(changed)))
        except ValidationError:
            continue
    return made


def _changes(spec: FilterSpec, spread: Spread, *, with_texts: bool) -> Iterator[tuple[str, Any, str]]:
    default = FilterSpec()
    for field, values in _values(spread, with_texts=with_texts).items():
        if getattr(spec, field) != getattr(default, field):
            yield field, getattr(default, field), "off"
        for value in values:
            yield field, value, _shown(value)


def _values(spread: Spread, *, with_texts: bool) -> dict[str, list[Any]]:
    """What to try, by setting, in the order in which the report shows it."""
    longest = spread.longest_list
    ranks: list[dict[str, Any]] = [{"first": first} for first in _FIRST_RANKS if first <= longest]
    ranks += [{"last": last} for last in _LAST_RANKS if last < longest]
    ranks += [{"by": source, "first": first} for source in ("dense", "bm25") for first in (1, 11)]
    return {
        "above_positive": ["drop", "relabel"],
        "absolute_margin": sorted({m for m in _rounded(spread.margins, _MARGIN_SHARES) if m > 0}),
        "relative_margin": list(_RELATIVE_MARGINS),
        "percent_of_positive": [],
        "rank_window": ranks,
        "min_logit": sorted(set(_rounded(spread.negative_logits, _MIN_SHARES))),
        "max_logit": sorted(set(_rounded(spread.negative_logits, _MAX_SHARES)), reverse=True),
        "iqr_whisker": list(_WHISKERS),
        "same_text": ["drop"] if with_texts else [],
        "tie_margin": list(_TIE_MARGINS),
        "min_candidates": [least for least in _LEAST_CANDIDATES if least <= longest],
    }


def _rounded(numbers: StreamedHistogram, shares: tuple[float, ...]) -> list[float]:
    """Quantiles to two significant digits: settings that a person would type."""
    return [float(f"{numbers.quantile(share):.2g}") for share in shares] if len(numbers.counts) else []


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {part}" for key, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
