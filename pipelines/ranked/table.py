"""RankedLists: one Delta table per (data set, score contract), where a chunk commits exactly once.

Enters: ranked chunks. Leaves: committed chunks, by number.

Exactly once, in two steps that need no lock:
1. A commit carries the Delta `txn` action `job/round/chunk`. Its writer first loads the log; if the action is there,
   the chunk is committed and nothing is written.
2. The write is based on that same loaded version. If another writer committed the same `txn` in between, Delta refuses
   ours; commits of other chunks in between do not disturb it.

A writer that dies between the data file and the log entry leaves a file that no log names: no reader sees it, and
`upkeep.vacuum` removes it when it is old.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import ContractError, RankedListsError
from pipelines.ranked.data_file import FOOTER_PREFIX, DataFile, DataFileReader, write_data_file
from pipelines.ranked.holds import held
from pipelines.ranked.log import DATASET_KEY, FileEntry, create_table, entries, open_table, our_errors
from pipelines.ranked.schema import PARTITION_COLUMNS, SCHEMA_VERSION
from pipelines.ranked.storage import Location
from pipelines.teacher.contract import ScoreContract
from pipelines.whole_files import durable

__all__ = ["RankedLists", "RoundOfLists", "ranked_lists_location"]

_JOB_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def ranked_lists_location(root: Path | str, *, dataset_fingerprint: str, contract_fingerprint: str) -> Location:
    """Where the lists of a data set scored under a contract live below `root`, a folder or an s3:// URL."""
    return Location.of(root) / "ranked_lists" / dataset_fingerprint / contract_fingerprint


@dataclass(frozen=True)
class RoundOfLists:
    """The lists that one job committed in one round."""

    job_id: str
    round_number: int
    num_lists: int


class RankedLists:
    """The table at `location`, created empty when it does not exist. Safe for many processes and threads at once.

    Raises:
        ContractError: the table holds scores of another contract.
        RankedListsError: the table has another schema, or its store cannot be reached.
    """

    def __init__(
        self, location: Path | str | Location, contract: ScoreContract, *, dataset_fingerprint: str = ""
    ) -> None:
        place = Location.of(location)
        create_table(place, contract, dataset_fingerprint)
        self._open(place)
        if self.contract.fingerprint != contract.fingerprint:
            raise ContractError(
                f"the lists in {place} were scored under contract {self.contract.fingerprint}, "
                f"the teacher's is {contract.fingerprint}"
            )

    @classmethod
    def existing(cls, location: Path | str | Location) -> Self:
        """The table at `location`, under whatever contract it was made.

        Raises:
            RankedListsError: there is none.
        """
        lists = cls.__new__(cls)
        lists._open(Location.of(location))
        return lists

    def _open(self, location: Location) -> None:
        self.location = location
        self._table = open_table(location)
        self._lock = threading.Lock()  # a DeltaTable changes as it follows the log; scoring and training share this one

    @property
    def contract(self) -> ScoreContract:
        """How every logit of the table was made: the contract of the job that created it, kept in its metadata."""
        return ScoreContract.from_dict(json.loads(self._table.metadata().description))

    @property
    def dataset_fingerprint(self) -> str:
        """Of the data set whose texts were scored; empty where the table's maker did not say."""
        return str(self._table.metadata().configuration.get(DATASET_KEY, ""))

    @property
    def version(self) -> int:
        """Of the table, as it was read last."""
        return int(self._table.version())

    def commit_chunk(self, rows: pa.Table, *, job_id: str, round_number: int, chunk_id: int) -> bool:
        """Append one chunk of `RANKED_SCHEMA`; True if this call committed it, False if it already was.

        (False, too, if this call committed it and the store's word of it was lost.)

        Args:
            rows: the chunk's.
            job_id: of letters, digits and `._-`.
            round_number: of the job.
            chunk_id: of the round.

        Raises:
            RankedListsError: the rows are not of that job, round and chunk, or the commit failed for another
                reason than the chunk being there; it can be tried again.
        """
        transaction = f"{job_id}/{round_number}/{chunk_id}"
        _check_chunk(rows, transaction, job_id=job_id, round_number=round_number, chunk_id=chunk_id)
        with self._lock:
            self._refresh()
            if self._number(transaction):
                return False
            file = write_data_file(
                self.location,
                [rows],
                partition={"job_id": job_id, "round": str(round_number)},
                metadata=self.footer(),
            )
            try:
                what = f"chunk {transaction} could not be committed"
                self._commit([file.add_action(data_change=True)], transaction, what)
            except RankedListsError:
                # Its file stays: a store that failed to answer may have taken the log entry all the same.
                self._refresh()
                if not self._number(transaction):
                    raise
                return False
            return True

    def replace(self, old: Sequence[FileEntry], new: Sequence[DataFile]) -> bool:
        """Put files with the same rows in the place of others of that round; False if another writer was faster.

        The old ones stay where they are until a vacuum: whoever reads them now goes on. Delta lets two transactions
        remove the same file (measured), which would double its rows; the `txn` action lets only one win.
        """
        place = f"{old[0].job_id}/{old[0].round_number}"
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [file.add_action(data_change=False) for file in new]
        actions += [RemoveAction(entry.path, False, now, entry.size, dict(new[0].partition)) for entry in old]
        with self._lock:
            self._refresh()
            if not {entry.path for entry in old} <= {entry.path for entry in self._entries()}:
                return False
            try:
                self._commit(actions, f"compact/{place}", f"round {place} could not be compacted")
            except RankedListsError as error:
                if isinstance(error.__cause__, CommitFailedError):
                    return False
                raise
            return True

    def files(self, job_id: str | None = None, round_number: int | None = None) -> list[FileEntry]:
        """Data files of the newest version, of one job and one round or of all; refreshed from the log."""
        with self._lock:
            self._refresh()
            return [
                entry
                for entry in self._entries()
                if job_id in (None, entry.job_id) and round_number in (None, entry.round_number)
            ]

    def rounds(self) -> list[RoundOfLists]:
        """What the table holds, by job and round, refreshed from the log."""
        counts: Counter[tuple[str, int]] = Counter()
        for entry in self.files():
            counts[entry.job_id, entry.round_number] += entry.num_lists
        return [RoundOfLists(job_id, number, counts[job_id, number]) for job_id, number in sorted(counts)]

    def chunks(self, job_id: str, round_number: int) -> Iterator[pa.Table]:
        """The committed lists of a round in chunk order, one row group at a time (one or several whole chunks).

        Columns: query_id, chunk_id, weights_version, candidates, miner.
        """
        filesystem = self.location.filesystem()
        with held(self.location) as hold:
            for entry in sorted(self.files(job_id, round_number), key=lambda entry: entry.first_chunk):
                for rows in DataFileReader(filesystem, entry.path).row_groups():
                    hold.renew()
                    yield rows

    def vacuum(self, retention_hours: int) -> list[str]:
        """Delete files that no version of the last `retention_hours` needs; returns their paths. See `upkeep`."""
        with self._lock, our_errors(self.location, "ranked lists cannot be vacuumed"):
            self._table.update_incremental()
            paths: list[str] = self._table.vacuum(
                retention_hours, dry_run=False, enforce_retention_duration=False, full=True
            )
            return paths

    def footer(self) -> dict[str, str]:
        """What a data file of this table says about itself, beside its rows."""
        facts = {
            "contract": json.dumps(self.contract.to_dict(), sort_keys=True),
            "dataset_fingerprint": self.dataset_fingerprint,
            "code_version": version("dualdistill"),
            "schema_version": str(SCHEMA_VERSION),
        }
        return {f"{FOOTER_PREFIX}{key}": value for key, value in facts.items()}

    def _commit(self, actions: Sequence[AddAction | RemoveAction], transaction: str, what: str) -> None:
        """Of writers that began at the same version with the same transaction, one succeeds."""
        properties = CommitProperties(app_transactions=[Transaction(transaction, self._number(transaction) + 1)])
        with our_errors(self.location, f"ranked lists: {what}"):
            self._table.create_write_transaction(
                list(actions),
                "append",
                self._table.schema(),
                list(PARTITION_COLUMNS),
                commit_properties=properties,
            )
            if self.location.local is not None:
                log = self.location.local / "_delta_log"
                durable(log / f"{self._table.version():020}.json")
                durable(log)

    def _number(self, transaction: str) -> int:
        """How often a transaction was committed, in the version that was read last."""
        with our_errors(self.location, "ranked lists cannot be read"):
            return int(self._table.transaction_version(transaction) or 0)

    def _entries(self) -> list[FileEntry]:
        with our_errors(self.location, "ranked lists cannot be read"):
            return entries(self._table)

    def _refresh(self) -> None:
        with our_errors(self.location, "ranked lists cannot be read"):
            self._table.update_incremental()


def _check_chunk(rows: pa.Table, transaction: str, *, job_id: str, round_number: int, chunk_id: int) -> None:
    if not _JOB_ID.fullmatch(job_id):
        raise RankedListsError(f"job_id must be letters, digits and ._-, at most 128, got {job_id[:200]!r}")
    for column, value in (("job_id", job_id), ("round", round_number), ("chunk_id", chunk_id)):
        if len(rows) == 0 or pc.any(pc.not_equal(rows[column], pa.scalar(value))).as_py():
            raise RankedListsError(f"chunk {transaction} is empty or has rows of another {column}")
