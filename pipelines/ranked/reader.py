"""Read the chunks of one round by number, wherever compaction has put them, while the round still grows.

Enters: a table, a job, a round. Leaves: rows of any range of committed chunks, in number order. A chunk lies whole in
one data file; the log says which chunks a file holds, and the file's footer says in which row groups, so any chunk is
found without reading another.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.data_file import DataFileReader
from pipelines.ranked.table import RankedLists

__all__ = ["RoundReader"]

_OPEN_FILES = 16


class RoundReader:
    """The chunks of (job, round) that were committed when `refresh` was last called."""

    def __init__(self, lists: RankedLists, job_id: str, round_number: int) -> None:
        self._lists = lists
        self._place = (job_id, round_number)
        self._filesystem = lists.location.filesystem()
        self._open: OrderedDict[str, DataFileReader] = OrderedDict()
        self.refresh()

    def refresh(self) -> None:
        """Look for chunks that came, or moved, since."""
        entries = sorted(self._lists.files(*self._place), key=lambda entry: entry.first_chunk)
        self._paths = [entry.path for entry in entries]
        self._first = np.array([entry.first_chunk for entry in entries], dtype=np.int64)
        self._last = np.array([entry.last_chunk for entry in entries], dtype=np.int64)

    def __contains__(self, chunk_id: int) -> bool:
        place = int(np.searchsorted(self._first, chunk_id, side="right")) - 1
        return place >= 0 and chunk_id <= self._last[place]

    def ready(self, first_chunk: int, most: int) -> int:
        """How many consecutive chunks from `first_chunk` on are committed, `most` at most."""
        count = 0
        while count < most and first_chunk + count in self:
            place = int(np.searchsorted(self._first, first_chunk + count, side="right")) - 1
            count = int(self._last[place]) - first_chunk + 1
        return min(count, most)

    def chunk_ids(self) -> set[int]:
        """Numbers of all committed chunks."""
        return {
            chunk_id
            for first, last in zip(self._first.tolist(), self._last.tolist(), strict=True)
            for chunk_id in range(first, last + 1)
        }

    def read(self, first_chunk: int, last_chunk: int, fields: Sequence[str] | None = None) -> pa.Table:
        """Rows of committed chunks `first_chunk` to `last_chunk` (inclusive), in number order.

        Args:
            first_chunk: where to begin.
            last_chunk: where to end.
            fields: of the candidates; None is all.

        Raises:
            RankedListsError: one of them is not committed, or a file is damaged.
        """
        if self.ready(first_chunk, last_chunk - first_chunk + 1) <= last_chunk - first_chunk:
            raise RankedListsError(f"chunks {first_chunk} to {last_chunk} of {self._place} are not all committed")
        begin = int(np.searchsorted(self._first, first_chunk, side="right")) - 1
        end = int(np.searchsorted(self._first, last_chunk, side="right"))
        parts = [self._file(path).read(first_chunk, last_chunk, fields) for path in self._paths[begin:end]]
        return pa.concat_tables(parts)

    def close(self) -> None:
        """Close what is open."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, path: str) -> DataFileReader:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[path] = DataFileReader(self._filesystem, path)
        return self._open[path]
