"""What an export format is: the tables it writes, the rows one list makes, and which lists it cannot take.

Enters: nothing. Leaves: the types that the format files fill and `export` runs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipelines.ranked.exports.choice import ChosenList, ExportOptions, Texts

__all__ = ["NO_NEGATIVE", "NO_POSITIVE", "Format", "Row", "TableSpec"]

Row = Mapping[str, Any]

NO_POSITIVE = "no positive"
NO_NEGATIVE = "no negative"


@dataclass(frozen=True)
class TableSpec:
    """One data file of an export."""

    name: str
    """Stem of the file; also the name under which a loader asks for it when there are several."""
    kind: Literal["parquet", "jsonl", "trec"]
    """Suffix of the file too. A row of `trec` has one field, `line`."""
    schema: pa.Schema | None = None
    """Of Parquet."""
    unique_by: str | None = None
    """Write only the first row with each value of this column."""

    @property
    def file_name(self) -> str:
        """The file's name below `data/`."""
        return f"{self.name}.{self.kind}"


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format. Everything in it is pure: no file is touched here."""

    name: str
    summary: str
    """One line: what reads it, and what a row is."""
    usage: str
    """How its loader is called, as a Python or shell snippet; `{folder}` is where the export lies."""
    tables: Callable[[ExportOptions], tuple[TableSpec, ...]]
    rows: Callable[[ChosenList, Texts, ExportOptions], Iterator[tuple[str, Row]]]
    """(name of a table, row) of one list, which `lacks` nothing."""
    lacks: Callable[[ChosenList, ExportOptions], str | None]
    """Why a list cannot be written in this format; None if it can."""
    needs_texts: bool = True
