"""Data files written row by row: Parquet, JSON lines, plain lines.

Enters: rows of a `TableSpec`. Leaves: a file, and how many rows it has. Memory is bounded: rows are held until a row
group is full, and of a table without repeats only the keys that were seen.
"""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ranked.exports.format import Row, TableSpec

__all__ = ["TableFiles"]

_ROWS_PER_GROUP = 512


class _Sink(Protocol):
    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class TableFiles:
    """The data files of one export, open together; a context manager that closes them."""

    def __init__(self, folder: Path, tables: Iterable[TableSpec]) -> None:
        self.num_rows: dict[str, int] = {}
        """Rows written so far, by table."""
        self._specs = {spec.name: spec for spec in tables}
        self._seen: dict[str, set[Any]] = {name: set() for name in self._specs}
        self._sinks: dict[str, _Sink] = {}
        with ExitStack() as stack:
            for name, spec in self._specs.items():
                self._sinks[name] = _sink(folder / spec.file_name, spec)
                self.num_rows[name] = 0
                stack.callback(self._sinks[name].close)
            self._close = stack.pop_all()

    def write(self, table: str, row: Row) -> None:
        """Append a row, unless the table has one with its key."""
        key = self._specs[table].unique_by
        if key is not None:
            if row[key] in self._seen[table]:
                return
            self._seen[table].add(row[key])
        self._sinks[table].write(row)
        self.num_rows[table] += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.__exit__(kind, error, trace)


def _sink(path: Path, spec: TableSpec) -> _Sink:
    if spec.schema is not None:
        return _Parquet(path, spec.schema)
    return _Lines(path, json_rows=spec.kind == "jsonl")


class _Lines:
    def __init__(self, path: Path, *, json_rows: bool) -> None:
        # newline="\n": the files are the same on every system.
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._json_rows = json_rows

    def write(self, row: Row) -> None:
        # allow_nan=False: "NaN" is no JSON, and no logit either.
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) if self._json_rows else row["line"]
        self._file.write(f"{line}\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []
