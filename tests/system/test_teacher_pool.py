"""The teacher pool on real Ray: one replica or three, killed or not, one job or two: lists and student are the same.

The teachers here are not trained first: two folders with the same tensors but other bytes, so that they give the same
logits under two contracts and neither job can reuse the other's scores.
"""

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from miniature import finished, miniature, ranked_rows, replica_pids
from safetensors.torch import load_file, save_file
from tiny import save_cross_encoder, write_beir

from services.cli.client import GatewayClient, RequestRefused
from services.cli.stack import Stack
from services.store import TERMINAL

NUM_QUERIES = {0: 220, -1: 40}


@pytest.fixture(scope="module")
def teachers(data_root: Path) -> tuple[str, str]:
    """Ids of two teachers of the same tensors."""
    first = save_cross_encoder(data_root / "cross-encoder")
    twin = Path(shutil.copytree(first, data_root / "cross-encoder-twin"))
    save_file(load_file(twin / "model.safetensors"), twin / "model.safetensors", {"format": "pt", "note": "twin"})
    return "./cross-encoder", "./cross-encoder-twin"


def untrained(teacher: str, **fields: Any) -> dict[str, Any]:
    return {"model": {"id": teacher}, "train": None, **fields}


def kill_one_replica(stack: Stack, teacher: str) -> None:
    pid = min(replica_pids(stack, teacher))
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"ray::ServeReplica:{teacher}:".encode())
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def two_jobs(stack: Stack, teachers: tuple[str, str]) -> list[dict[str, Any]]:
    """The same job on one replica and on three, submitted at once; each loses a replica while it scores.

    Each outcome has the replicas that were seen (`pids`) and the lists committed at the kill (`committed`).
    """
    common: dict[str, Any] = {
        "seed": 10,
        "dataset": {"path": "medquad", "unlabelled": {"max_queries": 100, "min_confidence": 0.2}},
        "candidates": {"bm25": {"top_k": 6}, "dense": {"top_k": 3}, "max_candidates": 8, "queries_per_chunk": 2},
    }
    with GatewayClient(stack.gateway_url) as client:
        jobs = [
            client.submit(miniature(**common, teacher=untrained(teacher, replicas=replicas, cpus_per_replica=0.3)))
            for teacher, replicas in zip(teachers, (1, 3), strict=True)
        ]
        pids: list[set[int]] = [set(), set()]
        committed = [0, 0]
        until = time.monotonic() + 400
        while not all(job["status"] in TERMINAL for job in jobs):
            assert time.monotonic() < until, [list(client.events(job["id"]))[-3:] for job in jobs]
            for number, job in enumerate(jobs):
                lists = job["progress"].get("lists_committed", 0)
                if job["status"] != "running" or lists < 10 or committed[number]:
                    continue
                pids[number] |= replica_pids(stack, job["teacher"])
                if len(pids[number]) == (1, 3)[number]:
                    kill_one_replica(stack, job["teacher"])
                    committed[number] = len(ranked_rows(stack.root, job["id"]))
            time.sleep(0.2)
            jobs = [client.job(job["id"]) for job in jobs]
        return [job | {"pids": seen, "committed": rows} for job, seen, rows in zip(jobs, pids, committed, strict=True)]


def test_a_killed_replica_is_not_noticed_by_the_job(two_jobs: list[dict], stack: Stack) -> None:
    """With one replica the calls wait for its successor; with three the others take them over."""
    for job in two_jobs:
        assert 0 < job["committed"] < sum(NUM_QUERIES.values()), "the kill came too late to prove anything"
        assert job["status"] == "succeeded", job["error"]
        assert job["attempt"] == 1, "the driver did not go down with its replica"
        seen = Counter((row["round"], row["query_id"]) for row in ranked_rows(stack.root, job["id"]))
        assert max(seen.values()) == 1
        assert Counter(round_ for round_, _ in seen) == NUM_QUERIES


def test_one_and_three_replicas_give_the_same_student(two_jobs: list[dict], stack: Stack) -> None:
    """Bit for bit: neither who scored a chunk, nor when, nor a repeated call may reach the weights."""
    one, three = two_jobs
    assert one["teacher"] != three["teacher"], "they must not share scores"
    assert [job["progress"]["pairs_reused"] for job in two_jobs] == [0, 0]
    assert [len(job["pids"]) for job in two_jobs] == [1, 3], "all three replicas were up while it scored"
    students = [
        load_file(stack.root / "jobs" / job["id"] / "artifacts" / "student" / "model.safetensors") for job in two_jobs
    ]
    assert students[0].keys() == students[1].keys()
    assert all(students[0][name].equal(students[1][name]) for name in students[0])


def test_two_jobs_at_once_share_a_small_machine(two_jobs: list[dict]) -> None:
    """Two drivers and two pools do not fit on 2 CPUs: had both booked their drivers, both would wait for pools."""
    assert [job["status"] for job in two_jobs] == ["succeeded", "succeeded"]
    if (os.cpu_count() or 1) < 8:  # `up` allows one driver per four CPUs
        first, second = two_jobs
        assert second["started_at"] >= first["finished_at"]


def test_an_error_inside_a_replica_fails_the_job_in_words(
    client: GatewayClient, data_root: Path, teachers: tuple[str, str]
) -> None:
    """What the user can mend arrives as a sentence, not as the traceback of another process, and is not retried."""
    write_beir(data_root / "tiny")
    spec = miniature(
        dataset={"path": "tiny"}, teacher=untrained(teachers[0], max_length=8, truncation="longest_first", replicas=1)
    )
    job = finished(client, client.submit(spec)["id"])
    assert (job["status"], job["reason"], job["attempt"]) == ("failed", "invalid_dataset", 1)
    assert job["error"]["message"].startswith("teacher.max_length 8 leaves 5 tokens")
    assert "\n" not in job["error"]["message"]


@pytest.mark.parametrize("path", ["/etc", "../outside", "medquad/../../outside", "link"])
def test_data_outside_the_data_roots_is_refused(client: GatewayClient, data_root: Path, path: str) -> None:
    """In the request, with the field's name: a job must not become a way to read the server's files."""
    link = data_root / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    before = client.jobs(1)
    with pytest.raises(RequestRefused) as refused:
        client.submit(miniature(dataset={"path": path}))
    assert refused.value.status == 422
    assert [field for field, _ in refused.value.problems] == ["spec.dataset.path"]
    assert [job["id"] for job in client.jobs(1)] == [job["id"] for job in before], "no job came of it"
