"""Keep a table fast and small: many little files become few, and what nobody reads any more is deleted.

Enters: a table. Leaves: the same rows in fewer files (`compact`), and a store without files that no reader can need
(`vacuum`). Neither ever changes a row, nor disturbs writers or readers:

- A compaction writes whole runs of consecutive chunks in number order and swaps them for the old files in one log
  entry. Of two that want the same files one is refused. Whoever opened the old files goes on reading them.
- A vacuum deletes what has left the log for longer than a retention, seven days by default, and for longer than the
  oldest reader that holds the table has been reading it. Files that no log entry ever named (of writers that were
  killed) go when they are as old.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import RankedListsError
from pipelines.ranked.data_file import DataFileReader, merge_row_groups, write_data_file
from pipelines.ranked.log import FileEntry
from pipelines.ranked.storage import without_file
from pipelines.ranked.table import RankedLists

__all__ = ["RETENTION_HOURS", "Hold", "compact", "held", "vacuum"]

log = logging.getLogger(__name__)
RETENTION_HOURS = 7 * 24
SMALL_FILE_BYTES = 16 * 2**20
FILE_BYTES = 256 * 2**20
"""Files up to the first size are joined, into files of about the second at most."""
HOLD_RENEWED_S, HOLD_EXPIRES_S = 60.0, 24 * 3600.0
_HOLDS = "_holds"
"""A vacuum leaves folders alone whose names begin with an underscore."""


def compact(lists: RankedLists, job_id: str, round_number: int, *, at_least: int = 2) -> int:
    """Join small files of consecutive chunks of a round; returns how many files are gone from the log for it.

    Args:
        lists: the table.
        job_id: whose lists.
        round_number: which round of them.
        at_least: runs of fewer small files are left as they are.

    Raises:
        RankedListsError: a file is damaged (nothing is changed then), or the store refuses the new one.
    """
    gone = 0
    for run in _runs(lists.files(job_id, round_number)):
        if len(run) < at_least:
            continue
        filesystem = lists.location.filesystem()

        def rows(run: Sequence[FileEntry] = run, filesystem: fs.FileSystem = filesystem) -> Iterator[pa.Table]:
            for entry in run:
                reader = DataFileReader(filesystem, entry.path)
                yield from reader.row_groups()
                reader.close()

        new = write_data_file(
            lists.location,
            merge_row_groups(rows()),
            partition={"job_id": job_id, "round": str(round_number)},
            metadata=lists.footer(compacted_files=str(len(run))),
        )
        if new.num_lists != sum(entry.num_lists for entry in run):
            raise RankedListsError(
                f"{lists.location}: files of chunks {new.first_chunk} to {new.last_chunk} hold {new.num_lists} lists, "
                f"the log says {sum(entry.num_lists for entry in run)}; they are not compacted"
            )
        if lists.replace(run, [new]):
            gone += len(run) - 1
    return gone


def _runs(entries: Sequence[FileEntry]) -> list[list[FileEntry]]:
    """Small files whose chunks follow one another without a gap, up to a file's size together."""
    runs: list[list[FileEntry]] = []
    size = 0
    previous: FileEntry | None = None
    for entry in sorted(entries, key=lambda entry: entry.first_chunk):
        if entry.size > SMALL_FILE_BYTES:
            previous = None
            continue
        follows = previous is not None and entry.first_chunk == previous.last_chunk + 1
        if follows and size + entry.size <= FILE_BYTES:
            runs[-1].append(entry)
            size += entry.size
        else:
            runs.append([entry])
            size = entry.size
        previous = entry
    return runs


class Hold:
    """Says that a reader is at work, so that no vacuum deletes what it may still open.

    A file whose name says since when, and whose time of change says when the reader was last heard of.
    """

    def __init__(self, lists: RankedLists, *, clock: Callable[[], float] = time.time) -> None:
        self._filesystem = lists.location.filesystem()
        self._clock = clock
        self._renewed = clock()
        self._path = f"{_HOLDS}/{int(self._renewed)}-{uuid.uuid4().hex}"
        self._filesystem.create_dir(_HOLDS, recursive=True)
        self._write()

    def renew(self) -> None:
        """Call often; writes once a minute."""
        if self._clock() - self._renewed >= HOLD_RENEWED_S:
            self._renewed = self._clock()
            self._write()

    def release(self) -> None:
        """The reader is done."""
        without_file(self._filesystem, self._path)

    def _write(self) -> None:
        with self._filesystem.open_output_stream(self._path, buffer_size=64) as stream:
            stream.write(b"held")  # through a buffer: a bucket's stream takes bytes, and Arrow gives it none directly


@contextmanager
def held(lists: RankedLists) -> Iterator[Hold]:
    """Hold the table while the context is open; renew it now and then."""
    hold = Hold(lists)
    try:
        yield hold
    finally:
        hold.release()


def vacuum(
    lists: RankedLists, *, retention_hours: float = RETENTION_HOURS, clock: Callable[[], float] = time.time
) -> list[str]:
    """Delete files that no reader can need; returns their paths.

    Args:
        lists: the table.
        retention_hours: how long after a file left the log (or was left by a dead writer) it may be wanted: by readers
            that do not hold the table, such as other engines that read the same Delta table. At least 1.
        clock: Unix seconds.

    Raises:
        RankedListsError: the retention is too short to be safe for writers at work.
    """
    if not retention_hours >= 1:
        raise RankedListsError(f"retention_hours must be at least 1 for the sake of writers at work: {retention_hours}")
    reading = max((clock() - since for since in _held_since(lists, clock())), default=0.0) / 3600
    return lists.vacuum(math.ceil(max(retention_hours, reading + 1 if reading else 0)))


def _held_since(lists: RankedLists, now: float) -> list[float]:
    """When the readers that are alive began; holds of those that died are removed."""
    filesystem = lists.location.filesystem()
    found = []
    for item in filesystem.get_file_info(fs.FileSelector(_HOLDS, allow_not_found=True)):
        if now - item.mtime.timestamp() > HOLD_EXPIRES_S:
            log.warning("a reader of %s has not been heard of for a day; its hold is removed", lists.location)
            without_file(filesystem, item.path)
        else:
            found.append(float(item.base_name.partition("-")[0]))
    return found
