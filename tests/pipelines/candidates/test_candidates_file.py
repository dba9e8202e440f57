"""A file of candidates is the table, whatever its blocks; a run that dies leaves none."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from candidates_for_tests import candidates_table
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.candidates.file import CandidatesFile, num_pairs, write_candidates


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=5),
    slices=st.lists(st.tuples(st.integers(0, 22), st.none() | st.integers(0, 22)), max_size=6),
)
def test_any_slice_is_the_tables(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[int]], slices: list[tuple[int, int | None]]
) -> None:
    table = candidates_table([length for block in blocks for length in block])
    ends = [sum(map(len, blocks[: i + 1])) for i in range(len(blocks))]
    parts = [table.slice(end - len(block), len(block)) for end, block in zip(ends, blocks, strict=True)]
    file = write_candidates(tmp_path_factory.mktemp("file") / "candidates.parquet", parts)
    assert len(file) == len(table)
    assert file.read().equals(table)
    assert num_pairs(file) == num_pairs(table) == sum(map(sum, blocks))
    assert [len(block) for block in file.blocks() if len(block)] == [len(block) for block in blocks if block]
    for offset, length in slices:
        assert file.slice(offset, length).equals(table.slice(offset, length))


def test_a_slice_reads_what_it_needs_and_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = candidates_table([1] * 12)
    file = write_candidates(tmp_path / "candidates.parquet", (table.slice(i, 4) for i in range(0, 12, 4)))
    read: list[int] = []

    class Counting:
        def __init__(self, whole: object) -> None:
            self.whole = whole

        def read_row_group(self, number: int) -> pa.Table:
            read.append(int(number))
            return self.whole.read_row_group(number)  # type: ignore[attr-defined]

    monkeypatch.setattr(file, "_file", Counting(file._file))
    for offset in range(0, 12, 2):
        file.slice(offset, 2)
    assert read == [0, 1, 2]
    file.slice(3, 2)
    assert read == [0, 1, 2, 0, 1]


def test_negative_slices_are_refused(tmp_path: Path) -> None:
    file = write_candidates(tmp_path / "candidates.parquet", [candidates_table([1])])
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(IndexError, match="must not be negative"):
            file.slice(offset, length)


def test_mining_that_dies_leaves_no_file_and_the_next_attempt_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "work" / "candidates.parquet"

    def dying() -> Iterator[pa.Table]:
        yield candidates_table([2, 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_candidates(path, dying())
    assert not path.exists()
    assert write_candidates(path, [candidates_table([1])]).read().equals(candidates_table([1]))
    assert [entry.name for entry in path.parent.iterdir()] == ["candidates.parquet"]
    assert CandidatesFile(path).read().equals(candidates_table([1]))
