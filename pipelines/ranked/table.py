"""RankedLists: one Delta table per (data set, score contract), where a chunk commits exactly once.

Enters: ranked chunks. Leaves: committed chunks, by number, and every logit ever scored under the contract.

Exactly once, in two steps that need no lock:
1. A commit carries the Delta `txn` action `job/round/chunk`. Its writer first loads the log; if the action is there,
   the chunk is committed and nothing is written.
2. The write is based on that same loaded version. If another writer committed the same `txn` in between, Delta refuses
   ours; commits of other chunks in between do not disturb it.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from pipelines.errors import ContractError, RankedListsError
from pipelines.ranked.schema import RANKED_SCHEMA
from pipelines.teacher.contract import ScoreContract

__all__ = ["RankedLists", "ranked_lists_path"]


def ranked_lists_path(root: Path, *, dataset_fingerprint: str, contract_fingerprint: str) -> Path:
    """Where the lists of a data set scored under a contract live below `root`."""
    return root / "ranked_lists" / dataset_fingerprint / contract_fingerprint


class RankedLists:
    """The table at `path`, created empty when it does not exist. Safe for many processes at once.

    Raises:
        ContractError: the table holds scores of another contract.
    """

    def __init__(self, path: Path, contract: ScoreContract) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        try:
            DeltaTable.create(
                str(path),
                RANKED_SCHEMA,
                mode="ignore",
                partition_by=["job_id", "round"],
                description=json.dumps(contract.to_dict(), sort_keys=True),
            )
        except CommitFailedError:
            # "ignore" looks, then creates: another process may have created the table in between.
            if not DeltaTable.is_deltatable(str(path)):
                raise
        self._table = DeltaTable(str(path))
        if self.contract.fingerprint != contract.fingerprint:
            raise ContractError(
                f"the lists in {path} were scored under contract {self.contract.fingerprint}, "
                f"the teacher's is {contract.fingerprint}"
            )

    @property
    def contract(self) -> ScoreContract:
        """How every logit of the table was made: the contract of the job that created it, kept in its metadata."""
        return ScoreContract.from_dict(json.loads(self._table.metadata().description))

    @property
    def version(self) -> int:
        """The newest table version this object has read."""
        return int(self._table.version())

    def commit_chunk(self, rows: pa.Table, *, job_id: str, round_number: int, chunk_id: int) -> bool:
        """Append one chunk of `RANKED_SCHEMA`; True if this call committed it, False if it already was.

        Raises:
            RankedListsError: the rows are not of that job, round and chunk, or the commit failed for another
                reason than the chunk being there.
        """
        for column, value in (("job_id", job_id), ("round", round_number), ("chunk_id", chunk_id)):
            if len(rows) == 0 or pc.any(pc.not_equal(rows[column], pa.scalar(value))).as_py():
                chunk = f"{job_id}/{round_number}/{chunk_id}"
                raise RankedListsError(f"chunk {chunk} is empty or has rows of another {column}")
        transaction = f"{job_id}/{round_number}/{chunk_id}"
        table = DeltaTable(str(self.path))
        if table.transaction_version(transaction) is not None:
            return False
        properties = CommitProperties(app_transactions=[Transaction(transaction, 1)])
        try:
            write_deltalake(table, rows, mode="append", commit_properties=properties)
        except CommitFailedError as error:
            if DeltaTable(str(self.path)).transaction_version(transaction) is not None:
                return False
            raise RankedListsError(f"chunk {transaction} could not be committed: {error}") from error
        return True

    def chunk_files(self, job_id: str, round_number: int) -> dict[int, str]:
        """Committed chunks of a round, refreshed from the log: chunk number -> data file, by file statistics."""
        self._table.update_incremental()
        actions = pa.table(self._table.get_add_actions(flatten=True))
        if actions.num_rows == 0:
            return {}
        mine = pc.and_(
            pc.equal(actions["partition.job_id"], job_id), pc.equal(actions["partition.round"], round_number)
        )
        found = actions.filter(mine)
        numbers, paths = found["min.chunk_id"].to_pylist(), found["path"].to_pylist()
        return dict(zip(numbers, paths, strict=True))

    def read_chunk(self, data_file: str, *, chunk_id: int) -> pa.Table:
        """The rows of one chunk: query_id, weights_version, candidates; in committed order."""
        table = pq.read_table(
            self.path / data_file,
            columns=["query_id", "chunk_id", "weights_version", "candidates"],
            partitioning=None,
        )
        return table.filter(pc.equal(table["chunk_id"], chunk_id)).drop_columns(["chunk_id"])

    def known_logits(self, query_ids: list[str], *, weights_version: int) -> dict[tuple[str, str], float]:
        """Logits already committed for these queries, by any job: (query_id, doc_id) -> teacher_logit."""
        self._table.update_incremental()
        wanted = pc.field("query_id").isin(query_ids) & (pc.field("weights_version") == weights_version)
        rows = self._table.to_pyarrow_dataset().to_table(columns=["query_id", "candidates"], filter=wanted)
        known: dict[tuple[str, str], float] = {}
        for query_id, candidates in zip(rows["query_id"].to_pylist(), rows["candidates"].to_pylist(), strict=True):
            known.update(((query_id, item["doc_id"]), item["teacher_logit"]) for item in candidates)
        return known
