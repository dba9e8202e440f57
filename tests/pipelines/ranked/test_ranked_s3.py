"""The same table in a bucket: a real server speaks the S3 protocol over HTTP, and fails when it is told to."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from deltalake import DeltaTable
from lists_for_tests import CONTRACT, CountingScorer, TextPairs, candidates_of, lists_of, ranked_chunk

from pipelines.corpus.dataset import Dataset
from pipelines.errors import RankedListsError
from pipelines.ranked.filling import fill_round
from pipelines.ranked.reader import RoundReader
from pipelines.ranked.storage import Location
from pipelines.ranked.table import RankedLists, RoundOfLists, ranked_lists_location
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.ranked.upkeep import compact, vacuum

Fail = Callable[..., None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its URL, and the file of rules by which it fails."""
    folder = tmp_path_factory.mktemp("s3")
    rules = folder / "rules.json"
    rules.write_text("[]")
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(rules)]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", rules
        process.kill()


@pytest.fixture
def fail(server: tuple[str, Path]) -> Iterator[Fail]:
    """Make requests fail; call it without arguments to make none fail any more."""

    def fail(
        method: str = "", contains: str = "", *, status: int = 403, times: int = 10**9, after: bool = False
    ) -> None:
        rule = {"method": method, "contains": contains, "status": status, "times": times, "after": after}
        server[1].write_text(json.dumps([rule] if method else []))

    yield fail
    fail()


@pytest.fixture
def bucket(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; the process finds its server as a deployment would, by the environment."""
    import boto3

    settings = {
        "AWS_ENDPOINT_URL": server[0],
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name = f"lists-{uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=server[0], region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/root"


def table(bucket: str) -> RankedLists:
    place = ranked_lists_location(bucket, dataset_fingerprint="data", contract_fingerprint="score")
    return RankedLists(place, CONTRACT)


def commit(lists: RankedLists, chunk_id: int) -> bool:
    rows = ranked_chunk(chunk_id, [f"q{chunk_id}-{i}" for i in range(3)])
    return lists.commit_chunk(rows, job_id="job", round_number=0, chunk_id=chunk_id)


def queries(lists: RankedLists, chunks: int) -> list[str]:
    rows = follow(
        lists,
        job_id="job",
        round_number=0,
        num_rows=3 * chunks,
        rows_per_chunk=3,
        start=StreamPosition(),
        epochs=1,
        seed=0,
        wait=lambda: pytest.fail("everything is there"),
    )
    return [row.query_id for row, _ in rows]


def test_a_round_is_filled_followed_compacted_and_vacuumed(bucket: str, dataset: Dataset, tmp_path: Path) -> None:
    lists, wanted, scorer = table(bucket), lists_of(dataset, 10), CountingScorer()
    for job_id in ("first", "second"):
        done = fill_round(
            candidates_of(wanted),
            TextPairs(dataset),
            table(bucket),
            scorer,
            job_id=job_id,
            round_number=0,
            rows_per_chunk=3,
            scratch=tmp_path / "known",
        )
        assert sum(item.num_queries for item in done) == 10
    assert len(scorer.pairs) == 30, "the second job asks for nothing"
    assert lists.rounds() == [RoundOfLists("first", 0, 10), RoundOfLists("second", 0, 10)]
    assert len(lists.files("first", 0)) == 1, "a filled round is compacted"
    assert vacuum(lists) == []
    rows = follow(
        lists,
        job_id="second",
        round_number=0,
        num_rows=10,
        rows_per_chunk=3,
        start=StreamPosition(0, 4),
        epochs=2,
        seed=0,
        wait=lambda: pytest.fail("everything is there"),
    )
    assert len(list(rows)) == 16
    assert Location.of(bucket).folders() == ["ranked_lists"]


def test_racing_writers_commit_each_chunk_once(bucket: str) -> None:
    # No lock service: the server's conditional writes (If-None-Match) decide.
    writers, chunks = 3, 4
    together = threading.Barrier(writers)

    def write(_: int) -> int:
        lists = table(bucket)
        won = 0
        for chunk_id in range(chunks):
            together.wait()
            won += commit(lists, chunk_id)
        return won

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(write, range(writers))) == chunks
    assert queries(table(bucket), chunks) == [f"q{chunk}-{i}" for chunk in range(chunks) for i in range(3)]


def test_an_error_that_passes_is_not_noticed(bucket: str, fail: Fail) -> None:
    lists = table(bucket)
    fail("PUT", "lists", status=503, times=2)
    assert commit(lists, 0)
    assert queries(table(bucket), 1) == ["q0-0", "q0-1", "q0-2"]


@pytest.mark.parametrize("what", ["parquet", "_delta_log"])
def test_an_error_that_stays_is_told_and_leaves_no_half_chunk(bucket: str, fail: Fail, what: str) -> None:
    lists = table(bucket)
    commit(lists, 0)
    fail("PUT", what)
    with pytest.raises(RankedListsError, match=r"s3://.*(cannot be written|could not be committed)"):
        commit(lists, 1)
    fail()
    assert RoundReader(table(bucket), "job", 0).chunk_ids() == {0}
    assert commit(lists, 1), "the same writer goes on"
    compact(lists, "job", 0)
    assert len(DeltaTable(lists.location.url).to_pyarrow_table()) == 6
    assert queries(table(bucket), 2)[3:] == ["q1-0", "q1-1", "q1-2"]


def test_what_cannot_be_read_is_told_and_never_read_as_less(bucket: str, fail: Fail) -> None:
    lists = table(bucket)
    for chunk_id in range(3):
        commit(lists, chunk_id)
    fail("GET", "parquet")
    with pytest.raises(RankedListsError, match=r"data file 'job_id=job/round=0/lists-.*cannot be read"):
        queries(lists, 3)
    with pytest.raises(RankedListsError, match="cannot be read"):
        compact(lists, "job", 0)
    fail("GET", "_delta_log")
    with pytest.raises(RankedListsError, match=r"s3://.* ranked lists cannot be"):
        RoundReader(table(bucket), "job", 0)
    fail()
    assert queries(lists, 3) == [f"q{chunk}-{i}" for chunk in range(3) for i in range(3)]


def test_a_vacuum_deletes_what_left_the_log(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = table(bucket)
    for chunk_id in range(3):
        commit(lists, chunk_id)
    old = {entry.path for entry in lists.files()}
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.ranked.table.time.time", lambda: now - 2 * 3600)
        compact(lists, "job", 0)
    assert set(vacuum(lists, retention_hours=1)) == old
    assert queries(lists, 3) == [f"q{chunk}-{i}" for chunk in range(3) for i in range(3)]


def test_a_log_entry_whose_answer_was_lost_counts_once(bucket: str, fail: Fail) -> None:
    # The server took it, and the connection broke before it said so: the chunk must not be written again.
    lists = table(bucket)
    fail("PUT", "00000000000000000001.json", status=500, times=1, after=True)
    commit(lists, 0)
    assert not commit(lists, 0)
    assert len(DeltaTable(lists.location.url).to_pyarrow_table()) == 3
    assert queries(table(bucket), 1) == ["q0-0", "q0-1", "q0-2"]


def test_a_bucket_that_cannot_be_reached_is_an_error_with_its_name(bucket: str, fail: Fail) -> None:
    for method in ("GET", "PUT"):
        fail(method)
        with pytest.raises(RankedListsError, match=bucket):
            table(bucket)
    with pytest.raises(RankedListsError, match="not in 'gs://bucket/x'"):
        Location.of("gs://bucket/x")
