"""AR2 through the service on real Ray, while everything that can die does: a trainer, the driver, a replica.

Both players are trained by workers of Ray Train, which start again when one is killed; the job's own pool gets new
weights in place, round after round. What the workers compute is held to one process in tests/pipelines. That a job ends
with words when no replica can load new weights was seen on a cluster (Serve gave up after 83 s), and is left out here.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import driver_pids, finished, miniature, ranked_rows, replica_pids

from pipelines.corpus.dataset import load_dataset
from pipelines.spec import parse_spec
from services.cli.client import GatewayClient
from services.cli.stack import Stack

WORKERS = {"count": 2, "cpus_per_worker": 0.25}
RANKER_STEPS, STUDENT_STEPS = 120, 60


def worker_pids() -> list[int]:
    """Ray Train's worker processes of this machine, by the title Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if b"RayTrainWorker" in title:
                found.append(int(entry.name))
    return found


def the_spec() -> dict[str, Any]:
    ranker = {"steps_per_round": RANKER_STEPS, "queries_per_step": 4, "learning_rate": 1e-4, "dtype": "fp32"}
    ranker |= {"checkpoint_every_steps": 10, "workers": WORKERS}
    spec = miniature(
        name="adversarial",
        seed=11,
        rounds={"count": 2, "mode": "adversarial", "adversarial": {"ranker": ranker, "refresh_steps_early": 4}},
        dataset={"path": "medquad", "unlabelled": {"use": False}},
        candidates={"bm25": None, "dense": {"top_k": 12}, "max_candidates": 12, "queries_per_chunk": 2},
        training={
            "objective": [{"name": "ar2"}, {"name": "list_kl"}],
            "queries_per_step": 2,
            "workers": WORKERS,
            "checkpoint_every_steps": 2,
        },
    )
    spec["teacher"] |= {"train": {"max_steps": 2, "dtype": "fp32", "workers": WORKERS}, "replicas": 1}
    return spec


class Watched:
    """A job that is looked at until something of it is so."""

    def __init__(self, client: GatewayClient, spec: dict[str, Any]) -> None:
        self.client, self.job_id = client, client.submit(spec)["id"]

    def until(self, what: Callable[[dict[str, Any]], bool], *, within_s: float = 200.0) -> None:
        end = time.monotonic() + within_s
        while not what(self.client.job(self.job_id)["progress"]):
            assert time.monotonic() < end, self.messages()
            time.sleep(0.1)  # between looks at a job of another process

    def events(self, type_: str) -> list[dict[str, Any]]:
        return [event for event in self.client.events(self.job_id) if event["type"] == type_]

    def messages(self) -> list[str]:
        return [event["message"] for event in self.client.events(self.job_id)]


@pytest.fixture(scope="module")
def played(stack: Stack) -> Iterator[Watched]:
    """A worker was killed as the ranker learned, the driver as the student did, a replica as it got new weights."""
    with GatewayClient(stack.gateway_url) as client:
        job = Watched(client, the_spec())
        disturb(job, stack)
        yield job


def disturb(job: Watched, stack: Stack) -> None:
    job.until(lambda now: now.get("ranker_step", 0) >= 2)
    victims = worker_pids()
    assert len(victims) == WORKERS["count"]
    os.kill(victims[1], signal.SIGKILL)

    job.until(lambda now: now.get("step", 0) >= 4)
    pids = driver_pids(job.job_id)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    job.until(lambda _: len(job.events("ranker.training.finished")) == 2)
    pool = job.events("teacher_pool.requested")[0]["data"]["teacher"]
    for pid in replica_pids(stack, pool):
        os.kill(pid, signal.SIGKILL)


def test_the_job_succeeds_in_its_second_attempt(played: Watched, client: GatewayClient, stack: Stack) -> None:
    job = finished(client, played.job_id)
    assert job["status"] == "succeeded", job["error"]
    assert job["attempt"] == 2, "the driver was killed once; workers and replicas that die cost no attempt"
    assert job["progress"]["ranker_step"] == 2 * RANKER_STEPS
    assert job["progress"]["step"] == 2 * STUDENT_STEPS
    assert len(played.events("training.planned")) >= 2, "a group for each round, at least"
    assert played.events("training.metrics")
    until = time.monotonic() + 90
    while left := worker_pids() + driver_pids(played.job_id):
        assert time.monotonic() < until, f"outlived their job: {left}"
        time.sleep(0.2)  # between looks at processes that are not ours to wait for
    work = stack.root / "jobs" / played.job_id / "work"
    assert not (work / "checkpoints").exists()


def test_every_round_is_scored_by_the_weights_it_published(
    played: Watched, client: GatewayClient, stack: Stack
) -> None:
    job = finished(client, played.job_id)
    rows = ranked_rows(stack.root, played.job_id)
    seen = Counter((row["round"], row["weights_version"]) for row in rows)
    assert seen == {(-2, 0): 40, (0, 1): 120, (1, 2): 120, (-1, 2): 40}
    assert max(Counter((row["round"], row["query_id"]) for row in rows).values()) == 1
    assert len({event["data"]["teacher"] for event in played.events("teacher_pool.requested")}) == 1
    assert {event["data"]["weights_version"] for event in played.events("teacher_pool.weights")} == {1, 2}
    assert {"ranker_before", "teacher_rerank"} <= set(job["result"]["evaluation"]["systems"])
    assert [each["round"] for each in job["result"]["rounds"]] == [0, 1]
    assert 0 < job["result"]["rounds"][1]["list_overlap"] <= 1


def test_the_ranker_is_the_one_that_scored_last(
    played: Watched, client: GatewayClient, stack: Stack, data_root: Path
) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    finished(client, played.job_id)
    folder = stack.root / "jobs" / played.job_id / "artifacts" / "ranker"
    student = SentenceTransformer(str(folder.parent / "student"), device="cpu")
    assert student.encode(["flu"]).shape == (1, 32)
    model = CrossEncoder(str(folder), max_length=128, activation_fn=torch.nn.Identity(), device="cpu")
    dataset = load_dataset(parse_spec(the_spec()).dataset, data_root / "medquad")
    pairs, logits = [], []
    for row in [row for row in ranked_rows(stack.root, played.job_id) if row["round"] == -1][:8]:
        items = row["candidates"]
        pairs += [(dataset.query_text(row["query_id"]), dataset.passage(item["doc_id"])) for item in items]
        logits += [item["teacher_logit"] for item in items]
    np.testing.assert_allclose(model.predict(pairs), logits, atol=1e-4)
