"""Keep a table fast and small: many little files become few, and what nobody reads any more is deleted.

Enters: a table. Leaves: the same rows in fewer files (`compact`), and a store without files that no reader can need
(`vacuum`). Neither ever changes a row, nor disturbs writers or readers:

- A compaction writes whole runs of consecutive chunks in number order and swaps them for the old files in one log
  entry. Of two that want the same files one is refused. Whoever opened the old files goes on reading them.
- A vacuum deletes what has left the log for longer than a retention, seven days by default, and for longer than the
  oldest reader that holds the table has been reading it. Files that no log entry ever named (of writers that were
  killed) go when they are as old.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.data_file import DataFileReader, merge_row_groups, write_data_file
from pipelines.ranked.holds import held, held_since
from pipelines.ranked.log import FileEntry, our_errors
from pipelines.ranked.table import RankedLists

__all__ = ["RETENTION_HOURS", "compact", "vacuum"]

RETENTION_HOURS = 7 * 24
SMALL_FILE_BYTES = 16 * 2**20
FILE_BYTES = 256 * 2**20
"""Files up to the first size are joined, into files of about the second at most."""


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
    with held(lists.location):
        runs = [run for run in _runs(lists.files(job_id, round_number)) if len(run) >= at_least]
        return sum(_join(lists, run) for run in runs)


def _join(lists: RankedLists, run: Sequence[FileEntry]) -> int:
    """Put one file in the place of some; returns how many files fewer there are."""
    filesystem = lists.location.filesystem()
    facts: dict[str, list[str]] = {}
    for entry in run:
        reader = DataFileReader(filesystem, entry.path)
        known, footer = reader.only_known_columns, reader.footer
        reader.close()
        if not known:
            return 0  # a later version wrote it, and joining would lose its columns
        for key, value in footer.items():
            if value not in facts.setdefault(key, []):
                facts[key].append(value)

    def rows() -> Iterator[pa.Table]:
        for entry in run:
            reader = DataFileReader(filesystem, entry.path)
            yield from reader.row_groups()
            reader.close()

    new = write_data_file(
        lists.location,
        merge_row_groups(rows()),
        partition={"job_id": run[0].job_id, "round": str(run[0].round_number)},
        metadata=lists.footer() | {key: ", ".join(values) for key, values in facts.items()},
    )
    if new.num_lists != sum(entry.num_lists for entry in run):
        raise RankedListsError(
            f"{lists.location}: files of chunks {new.first_chunk} to {new.last_chunk} hold {new.num_lists} lists, "
            f"the log says {sum(entry.num_lists for entry in run)}; they are not compacted"
        )
    return len(run) - 1 if lists.replace(run, [new]) else 0


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
    with our_errors(lists.location, "the holds of readers cannot be read"):
        reading = max((clock() - since for since in held_since(lists.location, clock())), default=0.0) / 3600
    return lists.vacuum(math.ceil(max(retention_hours, reading + 1 if reading else 0)))
