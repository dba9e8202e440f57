"""Checked tables from raw values: whatever would silently spoil a job later is refused here, by place and id.

Enters: values with their place ("corpus.jsonl, line 7"). Leaves: Arrow tables of `schema`, or a `DataError`.
Texts are looked at, never changed: not stripped, not normalised.
"""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipelines.corpus.schema import DOCUMENTS_SCHEMA, QRELS_SCHEMA, QUERIES_SCHEMA
from pipelines.errors import DataError

__all__ = ["QrelsTable", "TextTable", "check_splits_apart", "string_value"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
_RELEVANCE_RANGE = range(-128, 128)
_BATCH_ROWS = 65_536


def string_value(row: Mapping[str, Any], field: str, place: str, *, default: str | None = None) -> str:
    """The string in `row[field]`; a missing or null field gives `default` if there is one.

    Raises:
        DataError: the field is missing without a default, is not a string, or holds half a surrogate pair.
    """
    value = row.get(field)
    if value is None:
        if default is None:
            raise DataError(f"{place}: missing {field!r}")
        return default
    if not isinstance(value, str):
        raise DataError(f"{place}: {field!r} must be a string, got {value!r:.60} ({type(value).__name__})")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{place}: {field!r} cannot be written as UTF-8: {error.reason}") from error
    return value


class TextTable:
    """Collects documents (id, title, text) or queries (id, text), unique by id and not empty."""

    def __init__(self, *, of_documents: bool) -> None:
        self._schema = DOCUMENTS_SCHEMA if of_documents else QUERIES_SCHEMA
        self._kind = "document" if of_documents else "query"
        self._place: dict[str, str] = {}
        self._rows: list[dict[str, str]] = []
        self._batches: list[pa.RecordBatch] = []

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def add(self, place: str, key: str, *, text: str, title: str = "") -> None:
        """Append one row.

        Raises:
            DataError: the id is empty or was seen before, or there is nothing to read in the row.
        """
        if not key:
            raise DataError(f"{place}: the {self._kind} id is empty")
        if "\t" in key or "\n" in key or "\r" in key:
            raise DataError(f"{place}: the {self._kind} id {key!r} holds a tab or a line break")
        if key in self._place:
            raise DataError(f"{place}: duplicate {self._kind} id {key!r}, first in {self._place[key]}")
        if not text.strip() and not title.strip():
            what = "neither title nor text" if self._kind == "document" else "an empty text"
            raise DataError(f"{place}: {self._kind} {key!r} has {what}")
        self._place[key] = place
        values = (key, title, text) if self._kind == "document" else (key, text)
        self._rows.append(dict(zip(self._schema.names, values, strict=True)))
        if len(self._rows) == _BATCH_ROWS:
            self._flush()

    def table(self, source: str) -> pa.Table:
        """The collected rows in the order they came; `source` is what an empty table's error names.

        Raises:
            DataError: there is not a single row.
        """
        if not self._place:
            raise DataError(f"{source}: holds no {self._kind}")
        self._flush()
        return pa.Table.from_batches(self._batches, schema=self._schema)

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []


class QrelsTable:
    """Collects judgements against known documents and queries."""

    def __init__(self, documents: TextTable, queries: TextTable) -> None:
        self._documents, self._queries = documents, queries
        self._seen: dict[tuple[str, str, str], tuple[int, str]] = {}

    def add(self, place: str, split: str, query_id: str, doc_id: str, score: Any) -> None:
        """Append one judgement; the same judgement again is ignored.

        Raises:
            DataError: an unknown id, a score that is no integer in -128..127, or two scores for one pair.
        """
        relevance = _relevance(place, score)
        if query_id not in self._queries:
            raise DataError(f"{place}: query id {query_id!r} is not among the queries")
        if doc_id not in self._documents:
            raise DataError(f"{place}: document id {doc_id!r} (query {query_id!r}) is not in the corpus")
        earlier, where = self._seen.setdefault((split, query_id, doc_id), (relevance, place))
        if earlier != relevance:
            raise DataError(
                f"{place}: query {query_id!r} and document {doc_id!r} are judged {relevance} here and "
                f"{earlier} in {where}"
            )

    def table(self) -> pa.Table:
        """The judgements in the order they came."""
        splits, queries, documents = zip(*self._seen, strict=True) if self._seen else ((), (), ())
        relevance = [value for value, _ in self._seen.values()]
        columns = (splits, queries, documents, relevance)
        arrays = [pa.array(list(c), field.type) for c, field in zip(columns, QRELS_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=QRELS_SCHEMA)


def _relevance(place: str, score: Any) -> int:
    if isinstance(score, str) and _INTEGER.fullmatch(score):
        value = int(score)
    elif isinstance(score, int) and not isinstance(score, bool):
        value = score
    else:
        raise DataError(f"{place}: the score must be an integer, got {score!r:.60}")
    if value not in _RELEVANCE_RANGE:
        raise DataError(f"{place}: the score {value} is outside -128..127")
    return value


def check_splits_apart(qrels: pa.Table) -> None:
    """Refuse a query that is judged in two splits: its labels would be trained on and measured with.

    Raises:
        DataError: naming the first such query and both splits.
    """
    home: dict[str, str] = {}
    for split, query_id in zip(qrels["split"].to_pylist(), qrels["query_id"].to_pylist(), strict=True):
        if home.setdefault(query_id, split) != split:
            raise DataError(
                f"qrels: query {query_id!r} is judged in both {home[query_id]!r} and {split!r}; "
                "splits of one job must not share queries"
            )
