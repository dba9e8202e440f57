"""Scores that someone else made, read query by query: a TREC run, or rows of query_id, doc_id, score.

Enters: a file and the data set whose ids it must use. Leaves: `ScoredQuery`s in file order, checked. One query's lines
are in memory at a time, so they must stand together; a query that comes back later is refused and never merged, because
half a list looks like a whole one. Every complaint names file, line and value.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpus.dataset import Dataset
from pipelines.corpus.rows import rows_of
from pipelines.corpus.validation import string_value
from pipelines.errors import DataError

__all__ = ["ScoredQuery", "scored_queries"]

_ROW_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
_TREC_FIELDS = ("query_id", "Q0", "doc_id", "rank", "score", "tag")


@dataclass(frozen=True)
class ScoredQuery:
    """One query's scores, in file order."""

    query_id: str
    doc_ids: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    """Finite as float32."""


@dataclass(frozen=True)
class _Line:
    place: str
    query_id: str
    doc_id: str
    score: float
    rank: int | None


def scored_queries(path: Path, dataset: Dataset) -> Iterator[ScoredQuery]:
    """Read a file: `.parquet`, `.jsonl` and `.jsonl.gz` hold rows, anything else (also gzipped) is a TREC run.

    Raises:
        DataError: there is no such file or no score in it; a line is malformed; a score is not a finite number; an id
            is not in the data set; a pair comes twice; a query comes back; or a run's ranks contradict its scores.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}")
    ended: dict[str, str] = {}
    group: list[_Line] = []
    for line in _lines(path):
        _check_ids(line, dataset)
        if group and line.query_id != group[0].query_id:
            ended[group[0].query_id] = group[-1].place
            yield _scored(group)
            group = []
        if line.query_id in ended:
            raise DataError(
                f"{line.place}: query {line.query_id!r} comes again, after its lines ended at {ended[line.query_id]}; "
                "the lines of a query must stand together (sort the file by query)"
            )
        group.append(line)
    if not group:
        raise DataError(f"{path.name}: holds no score")
    yield _scored(group)


def _scored(group: list[_Line]) -> ScoredQuery:
    query = ScoredQuery(group[0].query_id)
    first: dict[str, str] = {}
    for line in group:
        earlier = first.setdefault(line.doc_id, line.place)
        if earlier != line.place:
            raise DataError(
                f"{line.place}: document {line.doc_id!r} of query {line.query_id!r} was scored before, in {earlier}"
            )
        query.doc_ids.append(line.doc_id)
        query.scores.append(line.score)
    _check_ranks(group)
    return query


def _check_ids(line: _Line, dataset: Dataset) -> None:
    if line.query_id not in dataset.query_row:
        raise DataError(f"{line.place}: query {line.query_id!r} is not in data set {dataset.name!r}")
    if line.doc_id not in dataset.document_row:
        raise DataError(
            f"{line.place}: document {line.doc_id!r} (query {line.query_id!r}) is not in data set {dataset.name!r}"
        )


def _check_ranks(group: list[_Line]) -> None:
    """A run whose ranks say the opposite of its scores holds distances, or scores of something else."""
    ranked = sorted((line for line in group if line.rank is not None), key=lambda line: line.rank or 0)
    for better, worse in pairwise(ranked):
        if better.rank != worse.rank and better.score < worse.score:
            raise DataError(
                f"{worse.place}: rank {worse.rank} has score {worse.score:g}, above the {better.score:g} of rank "
                f"{better.rank} ({better.place}); a score must be higher where the document is better"
            )


def _lines(path: Path) -> Iterator[_Line]:
    if path.name.endswith(_ROW_SUFFIXES):
        for place, row in rows_of(path, path.name):
            query_id, doc_id = (string_value(row, name, place) for name in ("query_id", "doc_id"))
            yield _Line(place, query_id, doc_id, _score(place, row.get("score")), None)
        return
    for place, fields in _words(path):
        if len(fields) != len(_TREC_FIELDS):
            raise DataError(
                f"{place}: expected the {len(_TREC_FIELDS)} fields {' '.join(_TREC_FIELDS)!r}, got {len(fields)}: "
                f"{' '.join(fields)[:80]!r}"
            )
        query_id, _, doc_id, rank, score, _ = fields
        try:
            yield _Line(place, query_id, doc_id, _score(place, float(score)), int(rank))
        except ValueError as error:
            raise DataError(f"{place}: rank {rank!r} and score {score!r} must be numbers") from error


def _words(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The words of every line that is not blank, with the line's place."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                place = f"{path.name}, line {number}"
                try:
                    words = raw.decode("utf-8").split()
                except UnicodeDecodeError as error:
                    raise DataError(f"{place}: not UTF-8: {error}") from error
                if words:
                    yield place, words
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error


def _score(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{place}: the score must be a number, got {value!r:.60}")
    with np.errstate(over="ignore"):
        if not math.isfinite(np.float32(value)):
            raise DataError(f"{place}: the score {value!r} is not a finite float32")
    return float(value)
