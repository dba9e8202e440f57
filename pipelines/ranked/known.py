"""Logits that any job committed under the same contract, found before a teacher is asked: nothing is scored twice.

Enters: a table, the queries of a round in their order. Leaves: for any window of the round's candidates the logits that
are known, NaN where a teacher must be asked.

A hash join on disk: every committed list of one of the round's queries is read once and spilled to the bucket of the
part of the round that its query belongs to; a window then joins with one bucket. So a round costs one pass over the
table however many windows it has, and memory holds one bucket. What other jobs commit meanwhile is read when the next
window is looked up.
"""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ranked.data_file import DataFileReader
from pipelines.ranked.holds import held
from pipelines.ranked.log import FileEntry, our_errors
from pipelines.ranked.table import RankedLists

__all__ = ["KnownLogits"]

MOST_BUCKETS = 256
_SPILLED = pa.schema([("place", pa.int64()), ("doc_id", pa.string()), ("teacher_logit", pa.float32())])
_READ_LISTS = 16_384
"""Row groups are joined to about so many lists before the round's queries are looked up in them."""


class KnownLogits:
    """What is known about the pairs of one round.

    Args:
        lists: the table.
        query_ids: of the round, in its order.
        weights_version: whose logits count.
        own: (job_id, round) that is being filled; its own lists are none of its candidates' past.
        folder: buckets are spilled to a folder below it, which `close` removes.
        window: queries that are looked up together; buckets are whole windows.
    """

    def __init__(
        self,
        lists: RankedLists,
        query_ids: Sequence[str],
        *,
        weights_version: int,
        own: tuple[str, int],
        folder: Path,
        window: int,
    ) -> None:
        self.weights_version = weights_version
        self._lists = lists
        self._queries = pa.array(query_ids, pa.string())
        self._own = own
        # Of its own: a driver that was replaced and does not know it yet must not empty that of its successor.
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        windows = -(-len(query_ids) // window)
        self._per_bucket = window * max(1, -(-windows // MOST_BUCKETS))
        self._seen: dict[tuple[str, int], set[int]] = defaultdict(set)
        self._loaded: tuple[int, int, pa.Table] | None = None
        self._spills = 0

    def close(self) -> None:
        """Remove what was spilled."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def logits(self, candidates: pa.Table, first: int) -> npt.NDArray[np.float32]:
        """Known logits of a window of the round.

        Args:
            candidates: rows `first` and following of the round's candidates, all of one window.
            first: place of its first query in the round.

        Returns:
            float32 [candidates of all its lists], NaN where unknown.
        """
        self._read_new()
        bucket = self._bucket(first // self._per_bucket)
        column = candidates["candidates"].combine_chunks()
        lengths = np.asarray(column.value_lengths().fill_null(0), dtype=np.int64)
        total = int(lengths.sum())
        if not total or not len(bucket):
            return np.full(total, np.nan, dtype=np.float32)
        wanted = pa.table(
            {
                "place": pa.array(np.repeat(np.arange(first, first + len(lengths)), lengths)),
                "doc_id": column.flatten().field("doc_id"),
                "row": pa.array(np.arange(total)),
            }
        )
        found = wanted.join(bucket, keys=["place", "doc_id"], join_type="inner")
        logits = np.full(total, np.nan, dtype=np.float32)
        logits[found["row"].to_numpy()] = found["teacher_logit"].to_numpy()
        return logits

    def _read_new(self) -> None:
        """Spill what was committed since the last look."""
        filesystem = self._lists.location.filesystem()
        together: list[pa.Table] = []
        with held(self._lists.location) as hold:
            for entry in self._unseen():
                reader = DataFileReader(filesystem, entry.path)
                for rows in reader.row_groups(["query_id", "weights_version", "candidates"]):
                    hold.renew()
                    together.append(rows)
                    if sum(map(len, together)) >= _READ_LISTS:
                        self._spill(pa.concat_tables(together))
                        together = []
                reader.close()
            if together:
                self._spill(pa.concat_tables(together))

    def _unseen(self) -> list[FileEntry]:
        found = []
        for entry in self._lists.files():
            place, chunks = (entry.job_id, entry.round_number), range(entry.first_chunk, entry.last_chunk + 1)
            if place != self._own and not self._seen[place].issuperset(chunks):
                self._seen[place].update(chunks)  # a compacted file brings chunks that were read already
                found.append(entry)
        return found

    def _spill(self, rows: pa.Table) -> None:
        rows = rows.filter(pc.equal(rows["weights_version"], self.weights_version))
        places = pc.index_in(rows["query_id"], value_set=self._queries)
        rows = rows.append_column("place", places).filter(pc.is_valid(places))
        if not len(rows):
            return
        lists = rows["candidates"].combine_chunks()
        place = np.repeat(rows["place"].to_numpy().astype(np.int64), np.asarray(lists.value_lengths().fill_null(0)))
        items = lists.flatten()
        pairs = pa.table([pa.array(place), items.field("doc_id"), items.field("teacher_logit")], schema=_SPILLED)
        bucket_of = place // self._per_bucket
        order = np.argsort(bucket_of, kind="stable")
        pairs, bucket_of = pairs.take(pa.array(order)), bucket_of[order]
        self._spills += 1
        for bucket in np.unique(bucket_of).tolist():
            begin, end = np.searchsorted(bucket_of, [bucket, bucket + 1])
            path = self._folder / f"bucket-{bucket}-{self._spills}.arrow"
            with (
                our_errors(self._lists.location, f"known logits cannot be kept in {str(self._folder)!r}"),
                pa.OSFile(str(path), "wb") as sink,
                pa.ipc.new_file(sink, _SPILLED) as writer,
            ):
                writer.write_table(pairs.slice(begin, end - begin))

    def _bucket(self, number: int) -> pa.Table:
        """Distinct pairs of a bucket; of a pair that several jobs scored at the same time the lower logit."""
        if self._loaded is None or self._loaded[:2] != (number, self._spills):
            parts = [_SPILLED.empty_table()]
            for path in sorted(self._folder.glob(f"bucket-{number}-*.arrow")):
                with pa.OSFile(str(path), "rb") as source:
                    parts.append(pa.ipc.open_file(source).read_all())
            grouped = pa.concat_tables(parts).group_by(["place", "doc_id"]).aggregate([("teacher_logit", "min")])
            self._loaded = number, self._spills, grouped.rename_columns({"teacher_logit_min": "teacher_logit"})
        return self._loaded[2]
