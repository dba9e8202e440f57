"""The Delta log of a table of ranked lists: make one, open one, say which data files it names.

Enters: a location. Leaves: `DeltaTable`s whose errors are ours, and `FileEntry`s.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipelines.errors import RankedListsError
from pipelines.ranked.schema import PARTITION_COLUMNS, RANKED_SCHEMA, SCHEMA_VERSION, check_schema
from pipelines.ranked.storage import Location
from pipelines.teacher.contract import ScoreContract

__all__ = ["DATASET_KEY", "FileEntry", "create_table", "entries", "open_table", "our_errors"]

_TOMBSTONES_KEY, _KEEP_TOMBSTONES = "delta.deletedFileRetentionDuration", "interval 36500 days"
"""When a file left the log must stay known: a vacuum that finds no word of it would go by the age of the file."""
_VERSION_KEY = "dualdistill.schema_version"
DATASET_KEY = "dualdistill.dataset_fingerprint"


@dataclass(frozen=True)
class FileEntry:
    """A data file, as the log names it."""

    path: str
    size: int
    job_id: str
    round_number: int
    num_lists: int
    first_chunk: int
    last_chunk: int


def create_table(location: Location, contract: ScoreContract, dataset_fingerprint: str) -> None:
    """Make an empty table where there is none.

    Raises:
        RankedListsError: the store does not take it.
    """
    try:
        if location.local is not None:
            location.local.mkdir(parents=True, exist_ok=True)
        DeltaTable.create(
            location.url,
            RANKED_SCHEMA,
            mode="ignore",
            partition_by=list(PARTITION_COLUMNS),
            description=json.dumps(contract.to_dict(), sort_keys=True),
            configuration={
                _VERSION_KEY: str(SCHEMA_VERSION),
                DATASET_KEY: dataset_fingerprint,
                _TOMBSTONES_KEY: _KEEP_TOMBSTONES,
            },
            raise_if_key_not_exists=False,
        )
    except (DeltaError, OSError) as error:
        # "ignore" looks, then creates: another process may have created the table in between; opening it will tell.
        if not isinstance(error, CommitFailedError):
            raise RankedListsError(f"{location}: a table of ranked lists cannot be made: {error}") from error


def open_table(location: Location) -> DeltaTable:
    """The newest version.

    Raises:
        RankedListsError: there is none, it has another schema, or its store cannot be reached.
    """
    with our_errors(location, "ranked lists cannot be opened"):
        try:
            # Not `is_deltatable`: it holds Python's lock while it waits for the store.
            table = DeltaTable(location.url)
        except TableNotFoundError as error:
            raise RankedListsError(f"there are no ranked lists at {str(location)!r}") from error
        found = table.metadata()
    version = int(found.configuration.get(_VERSION_KEY, 1))
    check_schema(pa.schema(table.schema().to_arrow()), version, where=str(location))
    return table


def entries(table: DeltaTable) -> list[FileEntry]:
    """Data files of the version that was read last."""
    actions = pa.table(table.get_add_actions(flatten=True))
    if actions.num_rows == 0:
        return []
    columns = (
        "path", "size_bytes", "partition.job_id", "partition.round", "num_records", "min.chunk_id", "max.chunk_id"
    )  # fmt: skip
    return [FileEntry(*row) for row in zip(*(actions[name].to_pylist() for name in columns), strict=True)]


@contextmanager
def our_errors(location: Location, what: str) -> Iterator[None]:
    """Errors of the log and its store as `RankedListsError`s that name the table."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise RankedListsError(f"{location}: {what}: {error}") from error
