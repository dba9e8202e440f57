"""`lists compact` and `lists vacuum`: the lists stay, files go; what is too young or too short is a sentence."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from chunks_for_tests import CONTRACT, ranked_chunk

from pipelines.ranked.reader import RoundReader
from pipelines.ranked.table import RankedLists
from services.cli.output import console


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankedLists:
    monkeypatch.setattr(console, "width", 200)
    lists = RankedLists(tmp_path / "root/ranked_lists/data/contract", CONTRACT)
    for chunk_id in range(3):
        rows = ranked_chunk(chunk_id, [f"q{chunk_id}"])
        lists.commit_chunk(rows, job_id="job", round_number=0, chunk_id=chunk_id)
    return lists


def test_small_files_are_joined_and_later_deleted(
    cli: Any, lists: RankedLists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("pipelines.ranked.table.time.time", lambda: now - 3 * 3600)  # when they left the log
    done = cli("lists", "compact", "--root", tmp_path / "root")
    monkeypatch.undo()
    assert (done.exit_code, done.output.strip()) == (0, "2 files fewer")
    for file in (tmp_path / "root").rglob("*.parquet"):
        os.utime(file, (now - 3 * 3600, now - 3 * 3600))
    done = cli("lists", "vacuum", "--root", tmp_path / "root")
    assert done.exit_code == 0
    assert done.output.strip().endswith("job: 0 files deleted")
    done = cli("lists", "vacuum", "--root", tmp_path / "root", "--retention-hours", 2)
    assert done.output.strip().endswith("job: 3 files deleted")
    assert RoundReader(lists, "job", 0).read(0, 2)["query_id"].to_pylist() == ["q0", "q1", "q2"]


def test_a_retention_that_could_hurt_a_writer_is_refused(cli: Any, lists: RankedLists, tmp_path: Path) -> None:
    done = cli("lists", "vacuum", "--root", tmp_path / "root", "--retention-hours", 0.5)
    assert done.exit_code == 1
    assert "retention_hours must be at least 1 for the sake of writers at work: 0.5" in done.output
    assert len(lists.files()) == 3
