"""Section about filters: which candidates of a stored list are read as its negatives, and which as further positives.

Lists hold every candidate with its raw logit; a filter is a view, decided when a list is read and free to change. Every
setting is off by default. `pipelines.ranked.filters.judge` applies them.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.spec_sections.base import Section

__all__ = ["FilterSpec", "RankWindow"]

Margin = Annotated[float, Field(ge=0, le=1e6)]
Logit = Annotated[float, Field(ge=-1e6, le=1e6)]
Rank = Annotated[int, Field(ge=1, le=1_000_000)]


class RankWindow(Section):
    """Ranks that a negative may have, both ends included, the best being 1: `first: 11` skips the ten best."""

    by: Literal["teacher", "dense", "bm25"] = "teacher"
    """Whose ranking. `teacher`: places in the stored list, positives counted. `dense`, `bm25`: places among all that
    the source found; what it did not find has no rank there and is outside."""
    first: Rank = 1
    last: Rank | None = None
    """None: to the end."""

    @model_validator(mode="after")
    def _leaves_some_and_drops_some(self) -> Self:
        if self.last is not None and self.first > self.last:
            raise ValueError(f"first: {self.first} is after last ({self.last}); no rank is in that window")
        if self.by == "teacher" and self.first == 1 and self.last is None:
            raise ValueError("first: 1 without a last is every rank of the teacher; set one of the two")
        return self


class FilterSpec(Section):
    """What is left out of a list, or relabelled in it; positives stay. All off by default.

    Margins, `percent_of_positive` and `above_positive` are measured from the teacher's logit of the list's positive; in
    a list without one they do nothing, the others work as anywhere.
    """

    absolute_margin: Margin | None = None
    """A negative's logit is at most that of the positive minus this; 0: not above the positive."""
    relative_margin: Margin | None = None
    """A negative's logit is at most pos - |pos| * this, which lies below the positive whatever its sign."""
    percent_of_positive: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same bar in the words of NV-Retriever: 0.95 is a relative_margin of 0.05."""
    margin_from: Literal["lowest", "highest"] = "lowest"
    """Which one is "the positive" where a list has several: the one the teacher likes least (the safer choice, and that
    of sentence-transformers), or most."""
    above_positive: Literal["keep", "drop", "relabel"] = "keep"
    """Candidates that the teacher puts above the positive by more than `tie_margin` (or 0). `relabel`: they are
    positives from then on, even if judged 0. Any margin drops them unless this says relabel."""
    rank_window: RankWindow | None = None
    min_logit: Logit | None = None
    """A negative's logit is at least this: below are the easy ones."""
    max_logit: Logit | None = None
    """A negative's logit is at most this: above are likely positives."""
    iqr_whisker: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """A negative's logit lies within the box plot of its list's negatives, whiskers of this many interquartile ranges
    (UNPG, arXiv 2203.11593; 1.5 is the usual length): both tails are dropped."""
    same_text: Literal["keep", "drop"] = "keep"
    """`drop`: of candidates that read the same, one stays: a positive if there is one, else the teacher's best."""
    tie_margin: Margin | None = None
    """Logits that differ by no more than this count as equal: a negative so near to a positive, or to a better negative
    that stays, is dropped. What the teacher's number format decides is not for the student to learn."""
    min_candidates: Annotated[int, Field(ge=2, le=4096)] | None = None
    """A list that keeps fewer, positives included, is dropped as a whole."""

    @property
    def measures_from_positive(self) -> bool:
        """Whether any setting looks at the positive's logit."""
        bars = (self.absolute_margin, self.relative_margin, self.percent_of_positive)
        return self.above_positive != "keep" or any(bar is not None for bar in bars)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems: list[str] = []
        if self.relative_margin is not None and self.percent_of_positive is not None:
            problems.append(
                f"percent_of_positive: {self.percent_of_positive:g} is a relative_margin of "
                f"{1 - self.percent_of_positive:g}, and relative_margin is {self.relative_margin:g}; set one of the two"
            )
        if self.min_logit is not None and self.max_logit is not None and self.min_logit > self.max_logit:
            problems.append(
                f"min_logit: {self.min_logit:g} is above max_logit ({self.max_logit:g}); no negative would be left"
            )
        if self.margin_from == "highest" and not self.measures_from_positive:
            problems.append(
                "margin_from: 'highest' chooses the positive that a margin is measured from, and no margin, "
                "percent_of_positive or above_positive is set"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
