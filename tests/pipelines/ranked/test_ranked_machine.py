"""Any order of writing, crashing, compacting, vacuuming and reading shows exactly the chunks that were committed."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lists_for_tests import CONTRACT, ranked_chunk

from pipelines.ranked.reader import RoundReader
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.ranked.upkeep import compact, vacuum

CHUNKS, ROWS = 6, 2
JOBS = ("a", "b")


class Crash(BaseException):
    """The process ends here: nothing is cleaned up."""


class RankedTable(RuleBasedStateMachine):
    """The model is a set of (job, chunk); several writers, and a reader that opened the table some time ago."""

    @initialize()
    def begin(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.lists = [RankedLists(self.path / "lists", CONTRACT) for _ in range(2)]
        self.committed: set[tuple[str, int]] = set()
        self.reader: RoundReader | None = None
        self.reader_knows: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "path"):
            shutil.rmtree(self.path)

    @rule(writer=st.integers(0, 1), job=st.sampled_from(JOBS), chunk=st.integers(0, CHUNKS - 1))
    def write(self, writer: int, job: str, chunk: int) -> None:
        won = self.lists[writer].commit_chunk(self.rows(job, chunk), job_id=job, round_number=0, chunk_id=chunk)
        assert won == ((job, chunk) not in self.committed)
        self.committed.add((job, chunk))

    @rule(job=st.sampled_from(JOBS), chunk=st.integers(0, CHUNKS - 1), after=st.sampled_from(["file", "log"]))
    def crash_while_writing(self, job: str, chunk: int, after: str) -> None:
        lists = RankedLists(self.path / "lists", CONTRACT)
        whole = RankedLists._commit

        def dying(table: RankedLists, *what: object) -> None:
            if after == "log":
                whole(table, *what)
            raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RankedLists, "_commit", dying)
            try:
                lists.commit_chunk(self.rows(job, chunk), job_id=job, round_number=0, chunk_id=chunk)
                assert (job, chunk) in self.committed
            except Crash:
                assert (job, chunk) not in self.committed
                if after == "log":
                    self.committed.add((job, chunk))

    @rule(writer=st.integers(0, 1), job=st.sampled_from(JOBS))
    def compact(self, writer: int, job: str) -> None:
        compact(self.lists[writer], job, 0)

    @rule(job=st.sampled_from(JOBS))
    def crash_while_compacting(self, job: str) -> None:
        def dying(*_: object, **__: object) -> None:
            raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RankedLists, "_commit", dying)
            try:
                compact(RankedLists(self.path / "lists", CONTRACT), job, 0)
            except Crash:
                return

    @rule(hours=st.sampled_from([0, 3]))
    def vacuum(self, hours: int) -> None:
        """Nothing is younger than `hours`; readers of this machine hold no table for longer than a retention."""
        for file in (self.path / "lists").rglob("*.parquet"):
            then = time.time() - hours * 3600
            os.utime(file, (then, then))
        vacuum(self.lists[0], retention_hours=2)

    @rule(job=st.sampled_from(JOBS))
    def open_reader(self, job: str) -> None:
        self.reader = RoundReader(self.lists[1], job, 0)
        self.reader_knows = self.reader.chunk_ids()
        self.reader_job = job

    @precondition(lambda self: self.reader is not None)
    @rule()
    def read_what_was_opened(self) -> None:
        """Old files stay readable: they left the log a moment ago."""
        assert self.reader is not None
        for chunk in self.reader_knows:
            rows = self.reader.read(chunk, chunk)
            assert rows["query_id"].to_pylist() == self.queries(self.reader_job, chunk)

    @rule(job=st.sampled_from(JOBS), ordinal=st.integers(0, CHUNKS * ROWS - 1))
    def follow_from_somewhere(self, job: str, ordinal: int) -> None:
        if {chunk for name, chunk in self.committed if name == job} != set(range(CHUNKS)):
            return
        rows = follow(
            self.lists[0],
            job_id=job,
            round_number=0,
            num_rows=CHUNKS * ROWS,
            rows_per_chunk=ROWS,
            start=StreamPosition(0, ordinal),
            epochs=1,
            seed=0,
            wait=lambda: pytest.fail("everything is there"),
        )
        expected = [query for chunk in range(CHUNKS) for query in self.queries(job, chunk)]
        assert [row.query_id for row, _ in rows] == expected[ordinal:]

    @invariant()
    def every_reader_sees_exactly_what_was_committed(self) -> None:
        if not hasattr(self, "lists"):
            return
        rows = DeltaTable(str(self.path / "lists")).to_pyarrow_table()
        expected = sorted(query for job, chunk in self.committed for query in self.queries(job, chunk))
        assert sorted(rows["query_id"].to_pylist()) == expected
        for job in JOBS:
            chunks = {chunk for name, chunk in self.committed if name == job}
            reader = RoundReader(self.lists[0], job, 0)
            assert reader.chunk_ids() == chunks
            assert all(reader.read(n, n)["query_id"].to_pylist() == self.queries(job, n) for n in chunks)

    @staticmethod
    def queries(job: str, chunk: int) -> list[str]:
        return [f"{job}-{chunk}-{i}" for i in range(ROWS)]

    def rows(self, job: str, chunk: int) -> object:
        return ranked_chunk(chunk, self.queries(job, chunk), job_id=job)


RankedTable.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestRankedTable = RankedTable.TestCase
