"""What of each list leaves the house: its positives and its hardest negatives, in teacher order.

Enters: lists as flat arrays, which candidates are positives, which ones a filter kept. Leaves: `ChosenList`s, all that
a format has to know of a list. It is here so that every format leaves out the same candidates, and says why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.spec import SpecError

__all__ = ["ChosenList", "ExportOptions", "NoTexts", "Scored", "Texts", "chosen_lists", "hardest"]


class Texts(Protocol):
    """Where texts come from; a `Dataset` is one."""

    def query_text(self, query_id: str) -> str:
        """The text of one query; DataError if there is no such query."""
        ...

    def passage(self, doc_id: str) -> str:
        """What the teacher read of one document; DataError if there is no such document."""
        ...


class NoTexts:
    """For exports of ids and scores alone, which need no data set."""

    def query_text(self, query_id: str) -> str:
        """Refuses."""
        raise RankedListsError(f"the text of query {query_id!r} is needed, and no data set is at hand")

    def passage(self, doc_id: str) -> str:
        """Refuses."""
        raise RankedListsError(f"the text of document {doc_id!r} is needed, and no data set is at hand")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a user may choose about an export, whatever its format."""

    num_negatives: int | None = None
    """At most so many negatives of each list, the teacher's best first; None is all of them."""
    tag: str = "dualdistill"
    """Last column of a TREC run."""

    def __post_init__(self) -> None:
        if self.num_negatives is not None and self.num_negatives < 1:
            raise SpecError([("num_negatives", f"must be at least 1, got {self.num_negatives}")])
        if self.tag.split() != [self.tag]:
            raise SpecError([("tag", f"must be one word, got {self.tag!r}")])


class Scored(NamedTuple):
    """A document and the teacher's raw logit for it: the stored float32, exactly."""

    doc_id: str
    logit: float


@dataclass(frozen=True)
class ChosenList:
    """What is exported of one query's list."""

    query_id: str
    candidates: tuple[Scored, ...]
    """In teacher order, best first."""
    positive: tuple[bool, ...]
    """Of each candidate."""

    @property
    def positives(self) -> list[Scored]:
        """Best first."""
        return [each for each, positive in zip(self.candidates, self.positive, strict=True) if positive]

    @property
    def negatives(self) -> list[Scored]:
        """Best, that is hardest, first."""
        return [each for each, positive in zip(self.candidates, self.positive, strict=True) if not positive]


def hardest(columns: ListColumns, negative: npt.NDArray[np.bool_], num_negatives: int | None) -> npt.NDArray[np.bool_]:
    """Of the candidates marked `negative` [C], the first `num_negatives` of each list (None: all), [C]."""
    if num_negatives is None:
        return negative
    seen = np.concatenate([[0], np.cumsum(negative)])
    before = np.repeat(seen[columns.offsets[:-1]], columns.lengths)
    first: npt.NDArray[np.bool_] = negative & (seen[1:] - before <= num_negatives)
    return first


def chosen_lists(
    columns: ListColumns, *, chosen: npt.NDArray[np.bool_], positive: npt.NDArray[np.bool_]
) -> Iterator[ChosenList]:
    """Every list with what was chosen of it, which may be nothing.

    Args:
        columns: Q lists, C candidates.
        chosen: [C], which candidates leave.
        positive: [C], which candidates are positives.
    """
    for number, query_id in enumerate(columns.query_id.tolist()):
        place = np.flatnonzero(chosen[columns.offsets[number] : columns.offsets[number + 1]]) + columns.offsets[number]
        scored = zip(columns.doc_id[place].tolist(), columns.teacher_logit[place].tolist(), strict=True)
        yield ChosenList(query_id, tuple(Scored(*each) for each in scored), tuple(positive[place].tolist()))
