"""Parquet triples (query, positive, negative) become tables.

Enters: one Parquet file, or a folder of them (read in name order), with string columns `query` (or `anchor`,
the name sentence-transformers uses), `positive` and, if there are any, `negative`; optional `query_id`,
`positive_id`, `negative_id`. Leaves: `CorpusTables` with the single split `train`: positives judged 1,
negatives judged 0. Without an id column the id is a hash of the text, so that the same text is the same
document in every row, file and run.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.rows import parquet_rows
from pipelines.corpus.schema import CorpusTables
from pipelines.corpus.validation import QrelsTable, TextTable, string_value
from pipelines.errors import DataError

__all__ = ["TRIPLES_SPLIT", "read_triples", "text_id", "triples_files"]

TRIPLES_SPLIT = "train"


def triples_files(path: Path) -> list[Path]:
    """The file itself, or the *.parquet files of a folder in name order."""
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


def text_id(prefix: str, text: str) -> str:
    """A stable id: prefix and the first 128 bits of the SHA-256 of the UTF-8 text, in hex."""
    return f"{prefix}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:32]}"


def read_triples(path: Path, splits: Sequence[str]) -> CorpusTables:
    """Read and check triples.

    Args:
        path: a Parquet file or a folder of them.
        splits: names the job asks for; only "train" exists.

    Raises:
        DataError: another split is asked for, a column is missing, one id has two texts, or a document is
            both a positive and a negative of a query (file and row are named).
    """
    for split in splits:
        if split != TRIPLES_SPLIT:
            raise DataError(
                f"there is no split {split!r}: triples hold only {TRIPLES_SPLIT!r}; "
                "set the split to null in the job, or use a BEIR folder"
            )
    files = triples_files(path)
    if not files:
        raise DataError(f"dataset.path: there is no Parquet file in {path.name!r}")
    collected = _Collected()
    for file in files:
        columns = _columns(file)
        for place, row in parquet_rows(file, file.name, tuple(columns.values())):
            collected.add(place, {role: row[column] for role, column in columns.items()})
    shown = files[0].name if len(files) == 1 else path.name
    return CorpusTables(collected.documents.table(shown), collected.queries.table(shown), collected.qrels.table())


class _Collected:
    def __init__(self) -> None:
        self.documents, self.queries = TextTable(of_documents=True), TextTable(of_documents=False)
        self.qrels = QrelsTable(self.documents, self.queries)
        self._digest: dict[tuple[str, str], bytes] = {}

    def add(self, place: str, row: Mapping[str, Any]) -> None:
        query_id = self._text(self.queries, "q", "query", place, row)
        positive_id = self._text(self.documents, "d", "positive", place, row)
        self.qrels.add(place, TRIPLES_SPLIT, query_id, positive_id, 1)
        if row.get("negative") is not None:
            negative_id = self._text(self.documents, "d", "negative", place, row)
            self.qrels.add(place, TRIPLES_SPLIT, query_id, negative_id, 0)

    def _text(self, table: TextTable, prefix: str, role: str, place: str, row: Mapping[str, Any]) -> str:
        text = string_value(row, role, place)
        named = f"{role}_id" in row
        key = string_value(row, f"{role}_id", place) if named else text_id(prefix, text)
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        if self._digest.setdefault((prefix, key), digest) != digest:
            raise DataError(f"{place}: {role}_id {key!r} came with another text before")
        if key not in table:
            table.add(place, key, text=text)
        return key


def _columns(file: Path) -> dict[str, str]:
    """Role -> column name of this file."""
    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.name}: cannot be read as Parquet: {error}") from error
    query = "query" if "query" in names else "anchor"
    columns = {"query": query, "positive": "positive"}
    for role, column in columns.items():
        if column not in names:
            raise DataError(f"{file.name}: there is no column {role!r}; columns: {', '.join(names)}")
    if "negative" in names:
        columns["negative"] = "negative"
    for role in [role for role in columns if f"{role}_id" in names]:
        columns[f"{role}_id"] = f"{role}_id"
    return columns
