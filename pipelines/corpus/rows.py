"""Raw rows of a file, each with the place a person can find it at.

Enters: a path to JSON lines (plain or gzip), TSV or Parquet. Leaves: `(place, mapping)` pairs in file order,
where place is "corpus.jsonl.gz, line 7" or "corpus.parquet, row 7" (both count from 1). It exists so that
every complaint about data names file and line, whatever the format. Values are passed on untouched.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError

__all__ = ["PlacedRow", "json_rows", "parquet_rows", "rows_of", "tsv_rows"]

PlacedRow = tuple[str, dict[str, Any]]

_BATCH_ROWS = 8192


def rows_of(path: Path, shown: str) -> Iterator[PlacedRow]:
    """Rows of a JSON-lines or Parquet file, told apart by its name.

    Args:
        path: the file.
        shown: what messages call it, relative to the data set, for example "qrels/test.tsv".
    """
    return parquet_rows(path, shown) if path.suffix == ".parquet" else json_rows(path, shown)


def json_rows(path: Path, shown: str) -> Iterator[PlacedRow]:
    """Objects of a .jsonl or .jsonl.gz file; blank lines are skipped.

    Raises:
        DataError: bad UTF-8, bad JSON, a line that is no object, or a broken gzip stream.
    """
    for place, line in _lines(path, shown):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(value).__name__}")
        yield place, value


def tsv_rows(path: Path, shown: str, columns: tuple[str, ...]) -> Iterator[PlacedRow]:
    """Rows of a tab-separated file whose first line names exactly `columns`.

    Raises:
        DataError: bad UTF-8, another header, or another number of fields in a line.
    """
    lines = _lines(path, shown)
    place, header = next(lines, (f"{shown}, line 1", ""))
    if tuple(header.split("\t")) != columns:
        raise DataError(f"{place}: expected the header {' '.join(columns)!r} (tab-separated), got {header[:80]!r}")
    for place, line in lines:
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise DataError(f"{place}: expected {len(columns)} tab-separated fields, got {len(fields)}")
        yield place, dict(zip(columns, fields, strict=True))


def parquet_rows(path: Path, shown: str, columns: tuple[str, ...] | None = None) -> Iterator[PlacedRow]:
    """Rows of a Parquet file, read batch by batch; `columns` limits what is decoded.

    Raises:
        DataError: the file is not Parquet, or a string in it is not UTF-8.
    """
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns) if columns else None):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{shown}, row {number}", row
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}, after row {number}: not UTF-8: {error}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{shown}: cannot be read as Parquet: {error}") from error


def _lines(path: Path, shown: str) -> Iterator[tuple[str, str]]:
    # Split on b"\n" before decoding: str.splitlines would also cut at U+2028 inside a text.
    with _readable(shown), gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            place = f"{shown}, line {number}"
            line = raw.rstrip(b"\r\n")
            if not line.strip():
                continue
            try:
                yield place, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8: {error}") from error


@contextmanager
def _readable(shown: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{shown}: cannot be read: {error}") from error
