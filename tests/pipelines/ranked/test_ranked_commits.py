"""A chunk is committed exactly once, however often and by however many it is tried."""

import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Barrier as ThreadBarrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from lists_for_tests import CONTRACT, ranked_chunk

from pipelines.errors import ContractError, RankedListsError
from pipelines.ranked.reader import RoundReader
from pipelines.ranked.schema import RANKED_SCHEMA
from pipelines.ranked.table import RankedLists, RoundOfLists, ranked_lists_location
from pipelines.teacher.contract import ScoreContract

FILED = {"job_id": "job", "round_number": 0}


def all_rows(path: Path) -> pa.Table:
    return DeltaTable(str(path)).to_pyarrow_table()


def test_a_retry_finds_the_chunk_committed(tmp_path: Path) -> None:
    # A driver that was killed after the commit and before it noted so tries again.
    lists = RankedLists(tmp_path, CONTRACT)
    rows = ranked_chunk(0, ["q1", "q2"])
    assert lists.commit_chunk(rows, **FILED, chunk_id=0)
    assert not lists.commit_chunk(rows, **FILED, chunk_id=0)
    assert not RankedLists(tmp_path, CONTRACT).commit_chunk(rows, **FILED, chunk_id=0)
    assert len(all_rows(tmp_path)) == 2


def test_a_retry_that_brings_other_rows_changes_nothing(tmp_path: Path) -> None:
    # Readers may have trained on the first ones already.
    lists = RankedLists(tmp_path, CONTRACT)
    lists.commit_chunk(ranked_chunk(0, ["q1"]), **FILED, chunk_id=0)
    assert not lists.commit_chunk(ranked_chunk(0, ["q2"]), **FILED, chunk_id=0)
    assert all_rows(tmp_path)["query_id"].to_pylist() == ["q1"]


def test_equal_chunk_numbers_of_other_rounds_and_jobs_do_not_collide(tmp_path: Path) -> None:
    lists = RankedLists(tmp_path, CONTRACT)
    places = [("job", 0), ("job", 1), ("job", -1), ("other", 0)]
    for job_id, number in places:
        rows = ranked_chunk(0, ["q"], job_id=job_id, round_number=number)
        assert lists.commit_chunk(rows, job_id=job_id, round_number=number, chunk_id=0)
    for job_id, number in places:
        assert RoundReader(lists, job_id, number).read(0, 0)["query_id"].to_pylist() == ["q"]


def test_racing_threads_commit_each_chunk_once(tmp_path: Path) -> None:
    writers, chunks = 4, 3
    together = ThreadBarrier(writers)

    def write(_: int) -> int:
        lists = RankedLists(tmp_path, CONTRACT)  # creating the table is part of the race
        won = 0
        for chunk_id in range(chunks):
            together.wait()
            won += lists.commit_chunk(ranked_chunk(chunk_id, ["q1", "q2"]), **FILED, chunk_id=chunk_id)
        return won

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(write, range(writers))) == chunks
    assert len(all_rows(tmp_path)) == 2 * chunks
    assert RoundReader(RankedLists(tmp_path, CONTRACT), "job", 0).chunk_ids() == set(range(chunks))


def test_jobs_that_create_a_table_at_once_all_get_it(tmp_path: Path) -> None:
    # Two jobs over the same data and teacher, submitted together, meet here first. It takes a few tries to collide.
    writers = 4
    for attempt in range(10):
        together = ThreadBarrier(writers)

        def create(_: int, path: Path = tmp_path / str(attempt), together: ThreadBarrier = together) -> RankedLists:
            together.wait()
            return RankedLists(path, CONTRACT)

        with ThreadPoolExecutor(writers) as pool:
            assert [lists.rounds() for lists in pool.map(create, range(writers))] == [[]] * writers


def _write_in_process(path: Path, together: Barrier, chunks: int) -> int:
    together.wait()
    lists = RankedLists(path, CONTRACT)
    won = 0
    for chunk_id in range(chunks):
        together.wait()
        won += lists.commit_chunk(ranked_chunk(chunk_id, ["q1"]), **FILED, chunk_id=chunk_id)
    return won


def test_racing_processes_commit_each_chunk_once(tmp_path: Path) -> None:
    # Two drivers of one job can be alive for a moment: the old one does not know yet that it lost its lease.
    spawn = multiprocessing.get_context("spawn")
    chunks = 8
    with spawn.Manager() as manager, ProcessPoolExecutor(2, mp_context=spawn) as pool:
        together = manager.Barrier(2)
        tries = [pool.submit(_write_in_process, tmp_path, together, chunks) for _ in range(2)]
        assert sum(task.result(timeout=60) for task in tries) == chunks
    assert len(all_rows(tmp_path)) == chunks


def test_chunks_are_found_and_refused_again_after_a_log_checkpoint(tmp_path: Path) -> None:
    # Delta folds its log into a checkpoint every 100 commits; transactions and file statistics must survive that.
    lists = RankedLists(tmp_path, CONTRACT)
    for chunk_id in range(103):
        assert lists.commit_chunk(ranked_chunk(chunk_id, ["q"]), **FILED, chunk_id=chunk_id)
    assert list(tmp_path.glob("_delta_log/*.checkpoint.parquet"))
    fresh = RankedLists(tmp_path, CONTRACT)
    assert not fresh.commit_chunk(ranked_chunk(0, ["q"]), **FILED, chunk_id=0)
    for reader in (RoundReader(lists, "job", 0), RoundReader(fresh, "job", 0)):
        assert reader.chunk_ids() == set(range(103))
        assert len(reader.read(57, 57)) == 1


def test_rows_of_another_place_or_none_are_refused(tmp_path: Path) -> None:
    lists = RankedLists(tmp_path, CONTRACT)
    rows = ranked_chunk(0, ["q"])
    with pytest.raises(RankedListsError, match="another chunk_id"):
        lists.commit_chunk(rows, **FILED, chunk_id=1)
    with pytest.raises(RankedListsError, match="another job_id"):
        lists.commit_chunk(rows, job_id="else", round_number=0, chunk_id=0)
    with pytest.raises(RankedListsError, match="another round"):
        lists.commit_chunk(rows, job_id="job", round_number=1, chunk_id=0)
    with pytest.raises(RankedListsError, match="empty"):
        lists.commit_chunk(RANKED_SCHEMA.empty_table(), **FILED, chunk_id=0)
    with pytest.raises(RankedListsError, match=r"job_id must be letters.*'a/b'"):
        lists.commit_chunk(ranked_chunk(0, ["q"], job_id="a/b"), job_id="a/b", round_number=0, chunk_id=0)
    assert lists.rounds() == []


def test_a_reader_sees_chunks_that_another_object_commits(tmp_path: Path) -> None:
    lists, writer = RankedLists(tmp_path, CONTRACT), RankedLists(tmp_path, CONTRACT)
    reader = RoundReader(lists, "job", 0)
    assert reader.chunk_ids() == set()
    writer.commit_chunk(ranked_chunk(4, ["q1", "q2"]), **FILED, chunk_id=4)
    reader.refresh()
    assert reader.chunk_ids() == {4}
    assert lists.rounds() == [RoundOfLists("job", 0, num_lists=2)]
    chunk = reader.read(4, 4)
    assert chunk.column_names == ["query_id", "chunk_id", "weights_version", "candidates", "miner"]
    assert chunk["query_id"].to_pylist() == ["q1", "q2"]
    with pytest.raises(RankedListsError, match=r"chunks 4 to 5 .* not all committed"):
        reader.read(4, 5)


def test_a_data_file_says_by_itself_how_its_scores_were_made(tmp_path: Path) -> None:
    # Somebody finds it years later, away from its table.
    lists = RankedLists(tmp_path, CONTRACT, dataset_fingerprint="f00d")
    lists.commit_chunk(ranked_chunk(0, ["q"], miner="untrained"), **FILED, chunk_id=0)
    (path,) = tmp_path.glob("job_id=job/round=0/*.parquet")
    footer = {key.decode(): value.decode() for key, value in pq.read_metadata(path).metadata.items()}
    assert ScoreContract.from_dict(json.loads(footer["dualdistill.contract"])) == CONTRACT
    assert footer["dualdistill.dataset_fingerprint"] == lists.dataset_fingerprint == "f00d"
    assert pq.ParquetFile(path).read()["miner"].to_pylist() == ["untrained"]
    assert footer["dualdistill.code_version"] == version("dualdistill")


def test_a_table_belongs_to_one_data_set_and_one_contract(tmp_path: Path) -> None:
    place = ranked_lists_location(tmp_path, dataset_fingerprint="data", contract_fingerprint="score")
    assert place.local == tmp_path / "ranked_lists" / "data" / "score"
    # Creating it twice keeps what is there.
    RankedLists(place, CONTRACT).commit_chunk(ranked_chunk(0, ["q"]), **FILED, chunk_id=0)
    assert RankedLists(place, CONTRACT).rounds() == [RoundOfLists("job", 0, num_lists=1)]


def test_the_whole_contract_is_kept_with_the_lists_and_no_other_is_let_in(tmp_path: Path) -> None:
    lists = RankedLists(tmp_path / "lists", CONTRACT)
    lists.commit_chunk(ranked_chunk(0, ["q"]), **FILED, chunk_id=0)
    assert RankedLists(tmp_path / "lists", CONTRACT).contract == CONTRACT
    other = dataclasses.replace(CONTRACT, truncation="longest_first")
    with pytest.raises(ContractError, match=f"{CONTRACT.fingerprint}, the teacher's is {other.fingerprint}"):
        RankedLists(tmp_path / "lists", other)
