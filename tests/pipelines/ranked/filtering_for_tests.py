"""Lists to filter, filters to apply, and what filters do written once more as a person would: list by list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import strategies as st

from pipelines.ranked.columns import ListColumns
from pipelines.ranked.schema import RANKED_SCHEMA
from pipelines.spec_sections.filters import FilterSpec


@dataclass(frozen=True)
class Doc:
    """A candidate. Ranks are as stored, from 0."""

    logit: float
    positive: bool = False
    text: str = ""
    bm25: int | None = None
    dense: int | None = None


Lists = Sequence[Sequence[Doc]]


def rows_of(lists: Lists, *, first: int = 0) -> pa.Table:
    """Rows of the table, in the order given; query and document ids tell list and place."""
    rows = [
        {
            "job_id": "job",
            "round": 0,
            "query_id": f"q{number}",
            "chunk_id": number,
            "weights_version": 0,
            "candidates": [
                {
                    "doc_id": f"d{number}-{place}",
                    "teacher_logit": doc.logit,
                    "student_score": None,
                    "bm25_rank": doc.bm25,
                    "dense_rank": doc.dense,
                    "relevance": 1 if doc.positive else None,
                }
                for place, doc in enumerate(docs)
            ],
        }
        for number, docs in enumerate(lists, start=first)
    ]
    return pa.Table.from_pylist(rows, schema=RANKED_SCHEMA)


def columns_of(lists: Lists) -> ListColumns:
    return ListColumns(rows_of(lists))


def positive_of(lists: Lists) -> npt.NDArray[np.bool_]:
    return np.array([doc.positive for docs in lists for doc in docs], dtype=np.bool_)


class Texts:
    """Texts of the documents of `lists`; remembers what it was asked."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self.asked: list[str] = []

    def __call__(self, doc_ids: Sequence[str]) -> list[str]:
        self.asked += list(doc_ids)
        places = (map(int, doc_id.removeprefix("d").split("-")) for doc_id in doc_ids)
        return [self._lists[number][place].text for number, place in places]


def reasons_in_words(docs: Sequence[Doc], spec: FilterSpec) -> list[str]:
    """The reference: one list, one candidate at a time."""
    of_positives = [doc.logit for doc in docs if doc.positive]
    anchor = None
    if of_positives:
        anchor = min(of_positives) if spec.margin_from == "lowest" else max(of_positives)
    found = ["positive" if doc.positive else "kept" for doc in docs]
    for place, doc in enumerate(docs):
        is_above = anchor is not None and doc.logit > anchor + (spec.tie_margin or 0)
        if spec.above_positive == "relabel" and is_above and not doc.positive:
            found[place] = "relabelled"
    whiskers = _whiskers([doc.logit for doc, name in zip(docs, found, strict=True) if name == "kept"], spec)
    found = [
        _alone(doc, place + 1, spec, anchor, whiskers) if name == "kept" else name
        for place, (doc, name) in enumerate(zip(docs, found, strict=True))
    ]
    if spec.same_text == "drop":
        _drop_copies(docs, found)
    if spec.tie_margin is not None:
        _drop_ties(docs, found, spec.tie_margin)
    kept = [place for place, name in enumerate(found) if name in {"kept", "positive", "relabelled"}]
    if spec.min_candidates is not None and len(kept) < spec.min_candidates:
        for place in kept:
            found[place] = "short_list"
    return found


def _whiskers(logits: list[float], spec: FilterSpec) -> tuple[float, float] | None:
    if spec.iqr_whisker is None or not logits:
        return None
    ranked = sorted(logits)
    low, high = ranked[len(ranked) // 4], ranked[3 * len(ranked) // 4]
    return low - spec.iqr_whisker * (high - low), high + spec.iqr_whisker * (high - low)


def _alone(  # noqa: PLR0911 - one for each reason
    doc: Doc, rank: int, spec: FilterSpec, anchor: float | None, whiskers: tuple[float, float] | None
) -> str:
    if anchor is not None and spec.measures_from_positive:
        if doc.logit > anchor + (spec.tie_margin or 0):
            return "above_positive"
        relative = spec.relative_margin
        if spec.percent_of_positive is not None:
            relative = 1 - spec.percent_of_positive
        if spec.absolute_margin is not None and doc.logit > anchor - spec.absolute_margin:
            return "within_margin"
        if relative is not None and doc.logit > anchor - abs(anchor) * relative:
            return "within_margin"
    if spec.rank_window is not None:
        window = spec.rank_window
        found = {"teacher": rank - 1, "bm25": doc.bm25, "dense": doc.dense}[window.by]
        if found is None or found + 1 < window.first or (window.last is not None and found + 1 > window.last):
            return "outside_rank_window"
    if spec.min_logit is not None and doc.logit < spec.min_logit:
        return "outside_score_band"
    if spec.max_logit is not None and doc.logit > spec.max_logit:
        return "outside_score_band"
    if whiskers is not None and not whiskers[0] <= doc.logit <= whiskers[1]:
        return "outlier"
    return "kept"


def _drop_copies(docs: Sequence[Doc], found: list[str]) -> None:
    seen: set[str] = set()
    for turn in ("positive", "relabelled", "kept"):
        for place, name in enumerate(found):
            if name == turn:
                if docs[place].text in seen and turn != "positive":
                    found[place] = "same_text"
                seen.add(docs[place].text)


def _drop_ties(docs: Sequence[Doc], found: list[str], margin: float) -> None:
    fixed = [docs[place].logit for place, name in enumerate(found) if name in {"positive", "relabelled"}]
    stays: list[float] = []
    for place, name in enumerate(found):
        if name == "kept":
            if any(abs(other - docs[place].logit) <= margin for other in fixed + stays):
                found[place] = "tied"
            else:
                stays.append(docs[place].logit)


# Eighths: sums, differences and products with powers of two are exact, so a property holds or does not; ties happen.
LOGITS = st.integers(-64, 64).map(lambda number: number / 8)
MARGINS = st.integers(0, 64).map(lambda number: number / 8)
DOCS = st.builds(
    Doc,
    logit=LOGITS,
    positive=st.sampled_from([False, False, False, True]),
    text=st.sampled_from("abcde"),
    bm25=st.none() | st.integers(0, 9),
    dense=st.none() | st.integers(0, 9),
)
LISTS = st.lists(st.lists(DOCS, max_size=10).map(lambda docs: sorted(docs, key=lambda doc: -doc.logit)), max_size=6)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    by = draw(st.sampled_from(["teacher", "dense", "bm25"]))
    first = draw(st.integers(2 if by == "teacher" else 1, 8))
    return {"by": by, "first": first, "last": draw(st.none() | st.integers(first, 12))}


@st.composite
def filter_specs(draw: st.DrawFn, **fixed: Any) -> FilterSpec:
    """Any filters that are allowed, each setting on or off; `fixed` ones as given."""

    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.none() | values)  # all at once, and the first hides what the others do

    low, high = sorted((draw(LOGITS), draw(LOGITS)))
    data: dict[str, Any] = {
        "absolute_margin": maybe(MARGINS),
        "above_positive": draw(st.sampled_from(["keep", "drop", "relabel"])),
        "rank_window": maybe(windows()),
        "min_logit": maybe(st.just(low)),
        "max_logit": maybe(st.just(high)),
        "iqr_whisker": maybe(st.sampled_from([0.0, 0.5, 1.5])),
        "same_text": draw(st.sampled_from(["keep", "drop"])),
        "tie_margin": maybe(st.sampled_from([0.0, 0.125, 0.5])),
        "min_candidates": maybe(st.integers(2, 6)),
    }
    bar = draw(st.sampled_from(["relative_margin", "percent_of_positive"]))
    data[bar] = maybe(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    data |= fixed
    measured = {"absolute_margin", "relative_margin", "percent_of_positive"}
    if data["above_positive"] != "keep" or any(data.get(name) is not None for name in measured):
        data.setdefault("margin_from", draw(st.sampled_from(["lowest", "highest"])))
    return FilterSpec.model_validate(data)
