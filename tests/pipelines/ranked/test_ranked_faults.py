"""Whatever kills a writer, and when: readers see whole chunks, no row twice, and the next try completes the table."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from lists_for_tests import CONTRACT, ranked_chunk

from pipelines.errors import RankedListsError
from pipelines.ranked.reader import RoundReader
from pipelines.ranked.schema import RANKED_SCHEMA, check_schema
from pipelines.ranked.table import RankedLists
from pipelines.ranked.upkeep import compact

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHILD = [sys.executable, str(HERE / "commit_child.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def child(path: Path, step: str, count: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHILD, str(path), step, str(count)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def commit(lists: RankedLists, chunk_id: int) -> bool:
    rows = ranked_chunk(chunk_id, [f"q{chunk_id}-{i}" for i in range(3)])
    return lists.commit_chunk(rows, job_id="job", round_number=0, chunk_id=chunk_id)


def assert_whole(path: Path, *, at_least: int = 0) -> int:
    """Every chunk that is seen is whole and there once, for us and for any other Delta reader; returns how many."""
    reader = RoundReader(RankedLists(path, CONTRACT), "job", 0)
    chunk_ids = reader.chunk_ids()
    for number in chunk_ids:
        assert reader.read(number, number)["query_id"].to_pylist() == [f"q{number}-{i}" for i in range(3)]
    rows = DeltaTable(str(path)).to_pyarrow_table()
    assert sorted(rows["query_id"].to_pylist()) == sorted(f"q{n}-{i}" for n in chunk_ids for i in range(3))
    assert len(chunk_ids) >= at_least
    return len(chunk_ids)


@pytest.mark.parametrize(("step", "seen"), [("file", 0), ("half", 0), ("log", 0), ("done", 1)])
def test_a_writer_killed_at_a_step_leaves_all_of_a_chunk_or_nothing(tmp_path: Path, step: str, seen: int) -> None:
    assert child(tmp_path / "lists", step).returncode == -signal.SIGKILL
    assert assert_whole(tmp_path / "lists") == seen
    assert commit(RankedLists(tmp_path / "lists", CONTRACT), 0) is (not seen)
    assert assert_whole(tmp_path / "lists") == 1


@pytest.mark.parametrize("step", ["half a compaction", "compaction before its log entry"])
def test_a_compaction_that_is_killed_changes_nothing(tmp_path: Path, step: str) -> None:
    assert child(tmp_path / "lists", step, 5).returncode == -signal.SIGKILL
    assert assert_whole(tmp_path / "lists") == 5
    lists = RankedLists(tmp_path / "lists", CONTRACT)
    assert len(lists.files()) == 5
    assert compact(lists, "job", 0) == 4
    assert assert_whole(tmp_path / "lists") == 5


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_announced(tmp_path: Path) -> None:
    # kill -9 from outside, also inside the libraries that write; the next writer begins at the first chunk again.
    path = tmp_path / "lists"
    announced = 0
    moments = np.random.default_rng(5)
    for _ in range(6):
        with subprocess.Popen(
            [*CHILD, str(path), "never", "60"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                announced = max(announced, int(line) + 1)
                if int(line) >= announced - 1 and moments.random() < 0.2:
                    time.sleep(moments.random() * 0.02)  # a kill at once would only ever meet a commit's beginning
                    writer.kill()
                    break
        assert_whole(path, at_least=announced)
    lists = RankedLists(path, CONTRACT)
    for chunk_id in range(60):
        commit(lists, chunk_id)
    compact(lists, "job", 0)
    assert assert_whole(path) == 60


@pytest.fixture
def in_a_namespace() -> list[str]:
    """A command that runs another with mounts of its own; skipped where the kernel does not let us."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no user namespaces to mount a small disk in")
    return command


def test_a_full_disk_is_an_error_that_says_so_and_harms_nothing(tmp_path: Path, in_a_namespace: list[str]) -> None:
    # The disk is a real one of 256 KB. What was committed is copied out before it goes.
    script = (
        f"mount -t tmpfs -o size=256k none {tmp_path} && mkdir {tmp_path}/lists && "
        f"{sys.executable} {CHILD[1]} {tmp_path}/lists full 1000 && mkdir {tmp_path}/x && "
        f"tar cf - -C {tmp_path} lists >&2"
    )
    ran = subprocess.run([*in_a_namespace, "sh", "-c", script], env=ENVIRONMENT, capture_output=True, check=False)
    told = ran.stdout.decode().splitlines()
    assert "refused at" in told[-1], (told, ran.stderr[-2000:])
    assert "No space left" in told[-1]
    (tmp_path / "saved").mkdir()
    subprocess.run(["tar", "xf", "-", "-C", str(tmp_path / "saved")], input=ran.stderr, check=True)
    committed = len(told) - 1
    assert committed > 3
    assert assert_whole(tmp_path / "saved/lists") == committed
    assert commit(RankedLists(tmp_path / "saved/lists", CONTRACT), committed)


def test_a_disk_that_became_read_only_is_an_error_and_readers_go_on(tmp_path: Path, in_a_namespace: list[str]) -> None:
    path = tmp_path / "lists"
    lists = RankedLists(path, CONTRACT)
    commit(lists, 0)
    mount = f"mount --bind {path} {path} && mount -o remount,ro,bind {path}"
    script = f"{mount} && {sys.executable} {CHILD[1]} {path} full 2"
    ran = subprocess.run(
        [*in_a_namespace, "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines()[0] == "0", ran.stderr  # it is committed already: nothing to write
    assert "refused at 1" in ran.stdout
    assert "Read-only file system" in ran.stdout
    assert assert_whole(path) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_data_file_is_named_and_never_read_as_less(tmp_path: Path, damage: str) -> None:
    lists = RankedLists(tmp_path, CONTRACT)
    commit(lists, 0)
    commit(lists, 1)
    first = min(lists.files(), key=lambda entry: entry.first_chunk)
    file = tmp_path / first.path
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[40] ^= 0xFF  # within the first page: only its checksum can tell
        file.write_bytes(content)
    else:
        file.unlink()
    reader = RoundReader(lists, "job", 0)
    assert len(reader.read(1, 1)) == 3
    with pytest.raises(RankedListsError, match=Path(first.path).name):
        reader.read(0, 0)
    with pytest.raises(RankedListsError, match=Path(first.path).name):
        compact(lists, "job", 0)
    assert len(lists.files()) == 2, "nothing was compacted away"


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    write_deltalake(str(tmp_path / "other"), pa.table({"a": [1]}))
    with pytest.raises(RankedListsError, match="no column 'job_id'"):
        RankedLists.existing(tmp_path / "other")
    lists = RankedLists(tmp_path / "newer", CONTRACT)
    DeltaTable(lists.location.url).alter.set_table_properties(
        {"dualdistill.schema_version": "2"}, raise_if_not_exists=False
    )
    with pytest.raises(RankedListsError, match="schema version 2 is newer"):
        RankedLists(tmp_path / "newer", CONTRACT)
    with pytest.raises(RankedListsError, match="there are no ranked lists at"):
        RankedLists.existing(tmp_path / "nowhere")


def test_a_table_from_before_a_column_was_added_goes_on(tmp_path: Path) -> None:
    earlier = pa.schema([field for field in RANKED_SCHEMA if field.name != "miner"])
    check_schema(earlier, 1, where="here")
    with pytest.raises(RankedListsError, match="no column 'weights_version'"):
        check_schema(pa.schema([f for f in earlier if f.name != "weights_version"]), 1, where="here")


def test_columns_that_a_later_version_added_are_passed_over(tmp_path: Path) -> None:
    # The rule of evolution: what is added is nullable and comes last, so that older readers go on.
    from deltalake import Field
    from deltalake.schema import PrimitiveType

    lists = RankedLists(tmp_path, CONTRACT)
    commit(lists, 0)
    DeltaTable(str(tmp_path)).alter.add_columns([Field("added", PrimitiveType("string"), nullable=True)])
    later = RankedLists(tmp_path, CONTRACT)
    commit(later, 1)
    assert assert_whole(tmp_path) == 2
