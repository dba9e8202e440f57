"""Compaction and vacuum change files, and nothing that a reader, a writer or a resumed run could notice."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, ranked_chunk

from pipelines.errors import RankedListsError
from pipelines.ranked import upkeep
from pipelines.ranked.data_file import DataFile, DataFileReader, write_data_file
from pipelines.ranked.holds import HOLD_EXPIRES_S, Hold
from pipelines.ranked.log import FileEntry
from pipelines.ranked.reader import RoundReader
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.ranked.upkeep import compact, vacuum

HOUR = 3600.0


def commit(lists: RankedLists, *chunk_ids: int, job_id: str = "job") -> None:
    for chunk_id in chunk_ids:
        rows = ranked_chunk(chunk_id, [f"q{chunk_id}-{i}" for i in range(3)], job_id=job_id)
        lists.commit_chunk(rows, job_id=job_id, round_number=0, chunk_id=chunk_id)


def data_files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*.parquet") if "_delta_log" not in file.parts}


def age(path: Path, hours: float) -> None:
    """Make every file of the table look older, and its log too."""
    for file in path.rglob("*"):
        if file.is_file():
            then = file.stat().st_mtime - hours * HOUR
            os.utime(file, (then, then))


@pytest.fixture
def lists(tmp_path: Path) -> RankedLists:
    return RankedLists(tmp_path / "lists", CONTRACT)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 12), min_size=1), st.integers(1, 40))
def test_compaction_keeps_every_chunk_where_its_number_says(
    tmp_path_factory: pytest.TempPathFactory, chunk_ids: set[int], row_group: int
) -> None:
    lists = RankedLists(tmp_path_factory.mktemp("lists"), CONTRACT)
    commit(lists, *sorted(chunk_ids, key=lambda number: (number * 7) % 13))
    reader = RoundReader(lists, "job", 0)
    before = {number: reader.read(number, number).to_pylist() for number in chunk_ids}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.ranked.data_file.ROW_GROUP_CANDIDATES", row_group)
        gone = compact(lists, "job", 0)
    runs = sum(number - 1 not in chunk_ids for number in chunk_ids)
    assert gone == len(chunk_ids) - runs
    after = RoundReader(lists, "job", 0)
    assert after.chunk_ids() == chunk_ids
    assert {number: after.read(number, number).to_pylist() for number in chunk_ids} == before
    rows = DeltaTable(lists.location.url).to_pyarrow_table()
    assert len(rows) == 3 * len(chunk_ids)
    assert set(rows["job_id"].to_pylist()) == {"job"}


def test_a_compacted_file_has_row_groups_of_whole_chunks(lists: RankedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(lists, *range(10))
    monkeypatch.setattr("pipelines.ranked.data_file.ROW_GROUP_CANDIDATES", 12)  # two chunks of six candidates
    assert compact(lists, "job", 0) == 9
    (entry,) = lists.files()
    assert lists.location.local is not None
    file = pq.ParquetFile(lists.location.local / entry.path)
    groups = [set(file.read_row_group(i)["chunk_id"].to_pylist()) for i in range(file.num_row_groups)]
    assert groups == [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}]


def test_a_chunk_that_was_compacted_is_still_committed_once(lists: RankedLists) -> None:
    commit(lists, 0, 1, 2)
    compact(lists, "job", 0)
    commit(lists, 0, 1, 2, 3)
    assert len(DeltaTable(lists.location.url).to_pyarrow_table()) == 12
    compact(lists, "job", 0)
    assert [(entry.first_chunk, entry.last_chunk) for entry in lists.files()] == [(0, 3)]


def test_other_jobs_and_large_files_are_left_alone(lists: RankedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(lists, 0, 1)
    commit(lists, 0, 1, job_id="other")
    untouched = {entry.path for entry in lists.files("other", 0)}
    monkeypatch.setattr(upkeep, "SMALL_FILE_BYTES", 10)
    assert compact(lists, "job", 0) == 0
    monkeypatch.undo()
    assert compact(lists, "job", 0) == 1
    assert {entry.path for entry in lists.files("other", 0)} == untouched


def test_a_compacted_file_says_what_its_parts_said(lists: RankedLists) -> None:
    # How the scores were made must not be lost with the small files, which are all that a round has at first.
    miners = ["untrained", None, "c0ffee"]
    for chunk_id, miner in enumerate(miners):
        rows = ranked_chunk(chunk_id, [f"q{chunk_id}"], miner=miner)
        lists.commit_chunk(rows, job_id="job", round_number=0, chunk_id=chunk_id)
    filesystem = lists.location.filesystem()
    before = DataFileReader(filesystem, lists.files()[0].path).footer
    compact(lists, "job", 0)
    (entry,) = lists.files()
    reader = DataFileReader(filesystem, entry.path)
    assert reader.footer == before
    assert set(before) == {
        f"dualdistill.{key}" for key in ("contract", "dataset_fingerprint", "code_version", "schema_version")
    }
    assert pa.concat_tables(reader.row_groups())["miner"].to_pylist() == miners


def test_files_from_before_a_column_was_added_are_read_and_joined(lists: RankedLists) -> None:
    commit(lists, 0, 1)
    path = Path(lists.location.url) / lists.files()[0].path
    rows = pq.ParquetFile(path).read()
    pq.write_table(rows.drop_columns(["miner"]), path)
    read = list(lists.chunks("job", 0))
    assert [block.column_names for block in read] == [rows.column_names] * 2
    assert compact(lists, "job", 0) == 1
    assert pa.concat_tables(lists.chunks("job", 0)).equals(pa.concat_tables(read))


def test_files_of_a_later_version_are_not_joined(lists: RankedLists) -> None:
    # Its columns would be lost: code of this version does not know them.
    commit(lists, 0, 1)
    path = Path(lists.location.url) / lists.files()[0].path
    rows = pq.ParquetFile(path).read()
    pq.write_table(rows.append_column("added", pa.array(["x"] * len(rows))), path)
    assert compact(lists, "job", 0) == 0
    assert len(lists.files()) == 2


def test_of_compactions_of_different_runs_one_gives_way(lists: RankedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    # `lists compact` beside a job that compacts by itself: whoever is late leaves it, and neither fails.
    commit(lists, *range(6))
    other = RankedLists(lists.location, CONTRACT)
    whole = RankedLists._commit

    def after_the_other(table: RankedLists, *what: object) -> None:
        if table is lists:
            monkeypatch.setattr(RankedLists, "_commit", whole)
            assert other.replace(other.files()[:2], [other_file(other.files()[:2])])
        whole(table, *what)

    def other_file(entries: list[FileEntry]) -> DataFile:
        ordered = sorted(entries, key=lambda entry: entry.first_chunk)
        readers = [DataFileReader(lists.location.filesystem(), entry.path) for entry in ordered]
        return write_data_file(
            lists.location,
            [rows for reader in readers for rows in reader.row_groups()],
            partition={"job_id": "job", "round": "0"},
            metadata={},
        )

    monkeypatch.setattr(RankedLists, "_commit", after_the_other)
    assert compact(lists, "job", 0) == 0
    assert RoundReader(lists, "job", 0).chunk_ids() == set(range(6))
    assert len(DeltaTable(lists.location.url).to_pyarrow_table()) == 18
    assert compact(lists, "job", 0) == 4


def test_a_vacuum_goes_by_when_a_file_left_the_log_however_old_it_is(lists: RankedLists) -> None:
    # Delta would forget after a week when a file left, and then go by the age of the file.
    path = Path(lists.location.url)
    commit(lists, *range(3))
    age(path, 24 * 400)
    compact(lists, "job", 0)
    lists._table.create_checkpoint()
    lists._table.cleanup_metadata()
    old = {entry.path for entry in lists.files()}
    assert vacuum(RankedLists(lists.location, CONTRACT), retention_hours=1) == []
    assert len(data_files(path)) == 3 + len(old)
    assert lists._table.metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 36500 days"


def test_a_table_that_cannot_be_held_is_read_all_the_same(lists: RankedLists, caplog: pytest.LogCaptureFixture) -> None:
    # A store that is mounted read-only, a full disk: a reader must not need to write.
    commit(lists, 0)
    (Path(lists.location.url) / "_holds").write_text("in the way")
    assert sum(map(len, lists.chunks("job", 0))) == 3
    assert "cannot be held while it is read" in caplog.text


def test_of_two_compactions_at_once_one_is_refused_and_nothing_doubles(lists: RankedLists) -> None:
    commit(lists, *range(6))
    together = threading.Barrier(2)
    gone: list[int] = []

    def race() -> None:
        mine = RankedLists(lists.location, CONTRACT)
        together.wait()
        gone.append(compact(mine, "job", 0))

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(gone) == [0, 5]
    assert len(DeltaTable(lists.location.url).to_pyarrow_table()) == 18


def test_a_writer_commits_while_its_files_are_compacted(lists: RankedLists) -> None:
    commit(lists, *range(4))
    writer = RankedLists(lists.location, CONTRACT)

    def commit_between(*_: object) -> Iterator[pa.Table]:
        commit(writer, 4, 5)
        yield from merge(*_)

    merge = upkeep.merge_row_groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "merge_row_groups", commit_between)
        assert compact(lists, "job", 0) == 3
    assert RoundReader(lists, "job", 0).chunk_ids() == set(range(6))
    assert len(DeltaTable(lists.location.url).to_pyarrow_table()) == 18


def test_a_vacuum_waits_for_the_retention(lists: RankedLists) -> None:
    commit(lists, *range(3))
    old = data_files(Path(lists.location.url))
    compact(lists, "job", 0)
    assert vacuum(lists) == []
    assert old < data_files(Path(lists.location.url))
    with pytest.raises(RankedListsError, match=r"retention_hours must be at least 1 .*0\.5"):
        vacuum(lists, retention_hours=0.5)


def test_a_vacuum_removes_what_left_the_log_and_what_a_dead_writer_left(
    lists: RankedLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(lists.location.url)
    commit(lists, *range(3))
    old = data_files(path)
    # The log entry that removes them is two hours old.
    now = time.time()
    monkeypatch.setattr("pipelines.ranked.table.time.time", lambda: now - 2 * HOUR)
    compact(lists, "job", 0)
    monkeypatch.undo()
    current = data_files(path) - old
    orphan = path / "job_id=job/round=0/lists-orphan.parquet"
    orphan.write_bytes(b"half a file")
    fresh = path / "job_id=job/round=0/lists-being-written.parquet"
    age(path, 2)
    fresh.write_bytes(b"half a file")
    removed = set(vacuum(lists, retention_hours=1))
    assert removed == old | {str(orphan.relative_to(path))}
    assert data_files(path) == current | {str(fresh.relative_to(path))}
    assert RoundReader(lists, "job", 0).chunk_ids() == {0, 1, 2}


def test_a_vacuum_removes_nothing_that_a_reader_holds(lists: RankedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    # The reader began three hours ago and has the old files open; the retention alone would let them go.
    path = Path(lists.location.url)
    commit(lists, *range(3))
    old = data_files(path)
    now = time.time()
    hold = Hold(lists.location, clock=lambda: now - 3 * HOUR)
    monkeypatch.setattr("pipelines.ranked.table.time.time", lambda: now - 2 * HOUR)
    compact(lists, "job", 0)
    monkeypatch.undo()
    age(path, 2)
    assert vacuum(lists, retention_hours=1) == []
    hold.release()
    assert set(vacuum(lists, retention_hours=1)) == old


def test_a_hold_is_renewed_and_one_of_a_dead_reader_expires(lists: RankedLists) -> None:
    path = Path(lists.location.url)
    now = time.time()
    clock = [now]
    hold = Hold(lists.location, clock=lambda: clock[0])
    (file,) = (path / "_holds").iterdir()
    file.unlink()
    clock[0] += 59
    hold.renew()
    assert list((path / "_holds").iterdir()) == []
    clock[0] += 2
    hold.renew()
    assert list((path / "_holds").iterdir()) == [file]
    vacuum(lists, clock=lambda: now + HOLD_EXPIRES_S - HOUR)
    assert file.exists()
    vacuum(lists, clock=lambda: now + HOLD_EXPIRES_S + HOUR)
    assert not file.exists()
    hold.release()  # its file is gone already


def test_whoever_follows_a_table_holds_it(lists: RankedLists) -> None:
    path = Path(lists.location.url)
    commit(lists, 0)
    rows = follow(
        lists,
        job_id="job",
        round_number=0,
        num_rows=3,
        rows_per_chunk=3,
        start=StreamPosition(),
        epochs=1,
        seed=0,
        wait=lambda: None,
    )
    next(rows)
    assert len(list((path / "_holds").iterdir())) == 1
    rows.close()
    assert list((path / "_holds").iterdir()) == []
