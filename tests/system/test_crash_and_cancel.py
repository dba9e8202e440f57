"""Killed drivers and cancelled jobs on real Ray: nothing is lost, nothing is done twice, nothing goes on."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from miniature import driver_pids, finished, miniature, ranked_rows

from services.cli.client import GatewayClient, RequestRefused
from services.cli.stack import Stack


def wait_for(client: GatewayClient, job_id: str, condition: Callable[[dict], bool], within_s: float = 120.0) -> dict:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        job = client.job(job_id)
        if condition(job):
            return job
        assert job["status"] in {"queued", "running"}, f"{job['status']} before the moment came: {job['error']}"
        time.sleep(0.02)
    return pytest.fail(f"the moment never came; progress: {client.job(job_id)['progress']}")


def serve_applications(stack: Stack) -> set[str]:
    token = stack.token_file.read_text().strip()
    reply = httpx.get(f"{stack.dashboard_url}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"})
    return set(reply.raise_for_status().json()["applications"])


def test_a_driver_killed_in_the_middle_loses_and_repeats_nothing(client: GatewayClient, stack: Stack) -> None:
    # Another seed has other chunks and another teacher, so that nothing of an earlier test is reused.
    spec = miniature(
        seed=6,
        dataset={"path": "medquad", "unlabelled": {"max_queries": 300, "min_confidence": 0.2}},
        candidates={"bm25": {"top_k": 6}, "dense": {"top_k": 3}, "max_candidates": 8, "queries_per_chunk": 2},
    )
    job_id = client.submit(spec)["id"]
    wait_for(client, job_id, lambda job: job["progress"].get("lists_committed", 0) >= 10)
    pids = driver_pids(job_id)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    committed = len(ranked_rows(stack.root, job_id))
    assert 0 < committed < 420, "the kill came too late to prove anything"

    job = finished(client, job_id)
    assert job["status"] == "succeeded", job["error"]
    assert job["attempt"] == 2
    rows = ranked_rows(stack.root, job_id)
    seen = Counter((row["round"], row["query_id"]) for row in rows)
    assert max(seen.values()) == 1
    assert Counter(round_ for round_, _ in seen) == {0: 420, -1: 40}


def test_cancel_is_prompt_and_final(client: GatewayClient, stack: Stack) -> None:
    spec = miniature(
        seed=7,
        dataset={"path": "medquad", "unlabelled": {"max_queries": 600, "min_confidence": 0.2}},
        training={"epochs": 50, "queries_per_step": 8, "candidates_per_query": 4},
    )
    job_id = client.submit(spec)["id"]
    wait_for(client, job_id, lambda job: job["progress"].get("step", 0) >= 2)
    asked = time.monotonic()
    client.cancel(job_id)
    job = finished(client, job_id, within_s=60)
    assert job["status"] == "cancelled"
    with pytest.raises(RequestRefused) as refused:
        client.cancel(job_id)
    assert refused.value.status == 409  # there is nothing left to cancel

    while driver_pids(job_id):
        assert time.monotonic() - asked < 90, "the driver outlived its job"
        time.sleep(0.2)
    rows, events = len(ranked_rows(stack.root, job_id)), len(list(client.events(job_id)))
    while serve_applications(stack):
        assert time.monotonic() - asked < 120, "the teacher pool outlived the job that needed it"
        time.sleep(0.5)
    assert len(ranked_rows(stack.root, job_id)) == rows
    assert len(list(client.events(job_id))) == events


def test_a_queued_job_is_cancelled_at_once(client: GatewayClient) -> None:
    job_id = client.submit(miniature(seed=8))["id"]
    client.cancel(job_id)
    assert finished(client, job_id, within_s=60)["status"] == "cancelled"
