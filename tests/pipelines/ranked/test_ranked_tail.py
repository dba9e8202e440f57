"""What training reads is fixed by numbers: not by when chunks arrive, and not by how often it was interrupted."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, ranked_chunk

from pipelines.errors import RankedListsError
from pipelines.ranked import order
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.data_file import DataFileReader
from pipelines.ranked.order import RoundShape, windows_from
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import RankedRow, Shard, StreamPosition, View, follow
from pipelines.ranked.upkeep import compact

ROWS, PER_CHUNK = 11, 3
QUERIES = [f"q{i}" for i in range(ROWS)]
CHUNKS = {number: QUERIES[number * PER_CHUNK : (number + 1) * PER_CHUNK] for number in range(4)}


def commit(lists: RankedLists, number: int) -> None:
    lists.commit_chunk(ranked_chunk(number, CHUNKS[number]), job_id="job", round_number=0, chunk_id=number)


def never() -> None:
    raise AssertionError("a committed chunk was waited for")


def stream(
    lists: RankedLists,
    *,
    start: StreamPosition = StreamPosition(),  # noqa: B008 - frozen
    epochs: int = 1,
    seed: int = 7,
    wait: Callable[[], None] = never,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    view: View | None = None,
) -> Iterator[tuple[RankedRow, StreamPosition]]:
    return follow(
        lists,
        job_id="job",
        round_number=0,
        num_rows=ROWS,
        rows_per_chunk=PER_CHUNK,
        start=start,
        epochs=epochs,
        seed=seed,
        wait=wait,
        shard=shard,
        view=view,
    )


def read(lists: RankedLists, **settings: Any) -> list[tuple[RankedRow, StreamPosition]]:
    return list(stream(lists, **settings))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> RankedLists:
    lists = RankedLists(tmp_path_factory.mktemp("complete"), CONTRACT)
    for number in CHUNKS:
        commit(lists, number)
    return lists


@pytest.mark.parametrize("arrival", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_order_of_reading_is_not_that_of_arrival(tmp_path: Path, arrival: list[int]) -> None:
    # Otherwise the number of replicas, or a slow one, would change the student.
    lists, coming = RankedLists(tmp_path, CONTRACT), list(arrival)
    waits: list[int] = []

    def wait() -> None:
        waits.append(1)
        commit(lists, coming.pop(0))

    rows = read(RankedLists(tmp_path, CONTRACT), wait=wait)
    assert [row.query_id for row, _ in rows] == QUERIES
    assert len(waits) == 4


def test_reading_begins_with_the_first_chunk(tmp_path: Path) -> None:
    # Training overlaps scoring: the first rows come out while nothing else is committed.
    lists = RankedLists(tmp_path, CONTRACT)
    commit(lists, 0)
    rows = stream(lists)
    assert [next(rows)[0].query_id for _ in range(3)] == ["q0", "q1", "q2"]
    with pytest.raises(AssertionError, match="waited"):
        next(rows)


def test_each_epoch_visits_every_row_once_in_an_order_of_its_own(complete: RankedLists) -> None:
    rows = [row.query_id for row, _ in read(complete, epochs=3)]
    epochs = [rows[i * ROWS : (i + 1) * ROWS] for i in range(3)]
    assert epochs[0] == QUERIES
    assert all(sorted(epoch) == sorted(QUERIES) for epoch in epochs)
    assert epochs[1] != epochs[0]
    assert epochs[2] != epochs[1]


def test_the_order_of_epochs_is_the_seeds(complete: RankedLists) -> None:
    def order(seed: int) -> list[str]:
        return [row.query_id for row, _ in read(complete, epochs=2, seed=seed)]

    assert order(7) == order(7)
    assert order(7) != order(8)


def test_reading_on_from_any_position_is_reading_on(complete: RankedLists) -> None:
    whole = read(complete, epochs=2)
    for done, (_, position) in enumerate(whole, start=1):
        rest = read(complete, epochs=2, start=position)
        assert [(row.query_id, following) for row, following in rest] == [
            (row.query_id, following) for row, following in whole[done:]
        ]
    assert whole[-1][1] == StreamPosition(2, 0)


def test_resuming_opens_only_the_chunk_it_needs(complete: RankedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    # Seeking, not replaying: a job that dies late in a long round must not read it all again.
    opened: list[tuple[int, int]] = []
    read_file = DataFileReader.read

    def counting(file: DataFileReader, first: int, last: int, fields: Sequence[str] | None) -> pa.Table:
        opened.append((first, last))
        return read_file(file, first, last, fields)

    monkeypatch.setattr(DataFileReader, "read", counting)
    assert [row.query_id for row, _ in read(complete, start=StreamPosition(0, 10))] == ["q10"]
    assert opened == [(3, 3)]


def test_what_waiting_raises_ends_the_reading(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("the teacher is gone")

    with pytest.raises(RuntimeError, match="the teacher is gone"):
        read(RankedLists(tmp_path, CONTRACT), wait=broken)


def test_a_row_carries_the_list_in_teacher_order(complete: RankedLists) -> None:
    row, _ = read(complete)[0]
    assert row.doc_ids.tolist() == ["d2", "d1"]
    np.testing.assert_array_equal(row.teacher_logits, np.array([0.01, 0.0], dtype=np.float32))
    np.testing.assert_array_equal(row.relevance, [-1, -1])  # unjudged, which is not the same as judged 0


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_workers_share_the_stream_without_overlap(complete: RankedLists, world: int) -> None:
    # Together they see what one sees, and row i of a step is the same row however many they are.
    whole = [(row.query_id, row.place) for row, _ in read(complete, epochs=3)]
    shares = [
        [(row.query_id, row.place) for row, _ in read(complete, epochs=3, shard=Shard(rank, world))]
        for rank in range(world)
    ]
    for rank, share in enumerate(shares):
        assert share == [item for item in whole if item[1].ordinal % world == rank]
    assert sorted(item for share in shares for item in share) == sorted(whole)


def test_a_worker_resumes_from_the_position_of_all(complete: RankedLists) -> None:
    shard = Shard(1, 2)
    rest = read(complete, epochs=2, shard=shard, start=StreamPosition(0, 8))
    assert [row.place.ordinal for row, _ in rest if row.place.epoch == 0] == [9]
    assert [row.place.ordinal for row, _ in rest if row.place.epoch == 1] == [1, 3, 5, 7, 9]


@given(rows=st.integers(1, 60), per_chunk=st.integers(1, 7), epoch=st.integers(1, 3), data=st.data())
def test_windows_are_a_permutation_that_can_be_entered_anywhere(
    rows: int, per_chunk: int, epoch: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK_ROWS", 6)
        patch.setattr(order, "WINDOW_BLOCKS", 2)
        shape = RoundShape(rows, per_chunk)

        def seen(ordinal: int) -> tuple[int, list[int]]:
            """Place of the first row, and row numbers of the round."""
            found: list[int] = []
            windows = list(windows_from(shape, epoch=epoch, seed=1, ordinal=ordinal))
            for window in windows:
                starts = np.array(window.blocks) * shape.rows_per_block
                sizes = shape.block_sizes()[list(window.blocks)]
                together = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, sizes, strict=True)])
                found += together[window.rows].tolist()
            return windows[0].first_place, found

        _, whole = seen(0)
        assert sorted(whole) == list(range(rows))
        ordinal = data.draw(st.integers(0, rows - 1))
        first, rest = seen(ordinal)
        assert first <= ordinal < first + 2 * shape.rows_per_block, "nothing before its window is read"
        assert rest == whole[first:]


def test_a_round_that_fits_a_window_is_shuffled_as_a_whole() -> None:
    (window,) = windows_from(RoundShape(4000, 16), epoch=1, seed=0, ordinal=0)
    assert sorted(window.rows.tolist()) == list(range(4000))
    distance = np.abs(np.sort(window.rows[:100])[1:] - np.sort(window.rows[:100])[:-1])
    assert distance.max() > 30, "the first hundred come from everywhere"


def test_compaction_in_the_middle_of_reading_changes_nothing(tmp_path: Path) -> None:
    lists = RankedLists(tmp_path, CONTRACT)
    for number in CHUNKS:
        commit(lists, number)
    expected = [row.query_id for row, _ in read(lists, epochs=2)]
    rows = stream(lists, epochs=2)
    found = [next(rows)[0].query_id]
    assert compact(lists, "job", 0) == 3
    assert found + [row.query_id for row, _ in rows] == expected


def test_a_view_shows_what_it_says_and_leaves_the_confidence_alone(complete: RankedLists) -> None:
    def view(columns: ListColumns) -> tuple[np.ndarray, np.ndarray]:
        return columns.doc_id == "d1", np.full(columns.num_candidates, 3, dtype=np.int16)

    rows = read(complete, epochs=2, view=view)
    assert len(rows) == 2 * ROWS
    plain = {row.query_id: row for row, _ in read(complete)}
    for row, _ in rows:
        assert (row.doc_ids.tolist(), row.relevance.tolist()) == (["d1"], [3])
        assert row.teacher_logits.tolist() == [plain[row.query_id].teacher_logits[1]]
        assert row.confidence == plain[row.query_id].confidence
    assert plain["q0"].confidence == pytest.approx(1 / (1 + np.exp(-0.01)))


def test_chunks_of_another_size_are_refused(tmp_path: Path) -> None:
    # Positions count rows by the size of chunks: lists that were cut otherwise would be skipped or seen twice.
    lists = RankedLists(tmp_path, CONTRACT)
    for number in CHUNKS:
        lists.commit_chunk(ranked_chunk(number, CHUNKS[number][:2]), job_id="job", round_number=0, chunk_id=number)
    with pytest.raises(RankedListsError, match="chunks 0 to 3 hold 8 lists, expected 11"):
        read(lists)
