"""One Parquet data file of ranked lists: whole chunks in number order, row groups of a good size, checksums.

Enters: chunks. Leaves: a file beside the table's log, which nobody sees until the log names it; and the rows of any
range of chunks, read from the row groups that hold them. A file says by itself how its scores were made: the contract,
the data set and the version of this code stand in its footer.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction
from pyarrow import fs

from pipelines.errors import RankedListsError
from pipelines.ranked.schema import PARTITION_COLUMNS, RANKED_SCHEMA
from pipelines.ranked.storage import Location, without_file
from pipelines.whole_files import durable

__all__ = ["DataFile", "DataFileReader", "merge_row_groups", "write_data_file"]

ROW_GROUP_CANDIDATES = 131_072
"""A row group closes when it holds so many: about 2 MB, so that a seek reads little and a scan reads well."""
FOOTER_PREFIX = "dualdistill."
_STORED = [field.name for field in RANKED_SCHEMA if field.name not in PARTITION_COLUMNS]
_SCHEMA = pa.schema([RANKED_SCHEMA.field(name) for name in _STORED])
_WRITER = {
    "compression": "zstd",
    "compression_level": 1,
    "write_page_checksum": True,
    "use_dictionary": ["query_id", "miner", "candidates.list.element.doc_id"],
    "store_schema": True,
}


@dataclass(frozen=True)
class DataFile:
    """What the log says of a file."""

    path: str
    size: int
    partition: Mapping[str, str]
    num_lists: int
    first_chunk: int
    last_chunk: int

    def add_action(self, *, data_change: bool) -> AddAction:
        """The log entry that makes the file part of the table."""
        stats = {
            "numRecords": self.num_lists,
            "minValues": {"chunk_id": self.first_chunk},
            "maxValues": {"chunk_id": self.last_chunk},
            "nullCount": {"chunk_id": 0},
        }
        return AddAction(
            path=self.path,
            size=self.size,
            partition_values=dict(self.partition),
            modification_time=int(time.time() * 1000),
            data_change=data_change,
            stats=json.dumps(stats),
        )


def write_data_file(
    location: Location,
    row_groups: Iterable[pa.Table],
    *,
    partition: Mapping[str, str],
    metadata: Mapping[str, str],
) -> DataFile:
    """Write row groups as one file, durable on return; nothing of it stays when that fails.

    Args:
        location: the table.
        row_groups: rows of `RANKED_SCHEMA`, chunks in increasing order, at least one.
        partition: column -> value of the table's partition.
        metadata: goes into the file's footer.

    Raises:
        RankedListsError: the store cannot take the file (no room, no right to write, no connection).
    """
    filesystem = location.filesystem()
    folder = "/".join(f"{column}={value}" for column, value in partition.items())
    path = f"{folder}/lists-{uuid.uuid4().hex}.parquet"
    schema = _SCHEMA.with_metadata(dict(metadata))
    lists, first, last = 0, None, None
    try:
        filesystem.create_dir(folder, recursive=True)
        with filesystem.open_output_stream(path) as sink, pq.ParquetWriter(sink, schema, **_WRITER) as writer:
            for rows in row_groups:
                writer.write_table(_complete(rows).select(_STORED).cast(schema), row_group_size=max(1, len(rows)))
                bounds = pc.min_max(rows["chunk_id"]).as_py()
                first = bounds["min"] if first is None else first
                lists, last = lists + len(rows), bounds["max"]
        if first is None or last is None:
            raise RankedListsError("a data file of ranked lists needs at least one row")
        size = filesystem.get_file_info(path).size
        if location.local is not None:
            file = location.local / path
            for place in (file, file.parent, file.parent.parent, location.local):
                durable(place)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the store that refused the file may refuse this too; vacuum finds it
            without_file(filesystem, path)
        if isinstance(error, OSError | pa.ArrowException):
            raise RankedListsError(f"{location}: a data file of ranked lists cannot be written: {error}") from error
        raise
    return DataFile(path, size, partition, lists, first, last)


def merge_row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Consecutive chunks joined into row groups of at least `ROW_GROUP_CANDIDATES`, the last one smaller."""
    held: list[pa.Table] = []
    candidates = 0
    for table in tables:
        held.append(table)
        candidates += pc.sum(pc.list_value_length(table["candidates"])).as_py() or 0
        if candidates >= ROW_GROUP_CANDIDATES:
            yield pa.concat_tables(held)
            held, candidates = [], 0
    if held:
        yield pa.concat_tables(held)


class DataFileReader:
    """One open file. Pages are checked against their checksums as they are read."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._path = path
        with self._named():
            self._file = pq.ParquetFile(filesystem.open_input_file(path), page_checksum_verification=True)
            self._bounds = _chunk_bounds(self._file.metadata)

    @property
    def footer(self) -> dict[str, str]:
        """What the file says about itself."""
        found = self._file.schema_arrow.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items() if key.startswith(FOOTER_PREFIX.encode())}

    @property
    def only_known_columns(self) -> bool:
        """Whether rewriting the file with the code at hand would keep all that is in it."""
        found = self._file.schema_arrow
        known = set(found.names) <= set(_STORED)
        return known and bool(found.equals(pa.schema([_SCHEMA.field(name) for name in found.names])))

    def read(self, first_chunk: int, last_chunk: int, fields: Sequence[str] | None = None) -> pa.Table:
        """Rows of chunks `first_chunk` to `last_chunk` (inclusive) that are in this file, in order.

        Args:
            first_chunk: where to begin.
            last_chunk: where to end.
            fields: of the candidates; None is all. query_id, chunk_id and weights_version are always read.

        Raises:
            RankedListsError: the file is damaged; the message names it.
        """
        groups = np.flatnonzero((self._bounds[:, 0] <= last_chunk) & (self._bounds[:, 1] >= first_chunk))
        columns = None
        if fields is not None:
            columns = ["query_id", "chunk_id", "weights_version", *(f"candidates.list.element.{f}" for f in fields)]
        with self._named():
            rows = self._file.read_row_groups(groups.tolist(), columns=columns)
        chunk_ids = rows["chunk_id"].to_numpy()
        begin, end = np.searchsorted(chunk_ids, first_chunk), np.searchsorted(chunk_ids, last_chunk, side="right")
        rows = rows.slice(begin, end - begin)
        return rows if columns else _complete(rows)

    def row_groups(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The file's row groups one after the other, all columns of them or some."""
        for number in range(self._file.num_row_groups):
            with self._named():
                rows = self._file.read_row_group(number, columns=columns)
            yield rows if columns else _complete(rows)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close(force=True)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise RankedListsError(f"ranked lists: data file {self._path!r} cannot be read: {error}") from error


def _complete(rows: pa.Table) -> pa.Table:
    """The rows with every column of the schema: a file may be older than one of them."""
    for name in _STORED:
        if name not in rows.column_names:
            rows = rows.append_column(_SCHEMA.field(name), pa.nulls(len(rows), _SCHEMA.field(name).type))
    return rows


def _chunk_bounds(metadata: pq.FileMetaData) -> npt.NDArray[np.int64]:
    """First and last chunk of every row group, [row groups, 2]."""
    column = metadata.schema.names.index("chunk_id")
    bounds = np.empty((metadata.num_row_groups, 2), dtype=np.int64)
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            raise pa.ArrowInvalid("its row groups do not say which chunks they hold")
        bounds[number] = statistics.min, statistics.max
    return bounds
