"""A student trained by workers on real Ray: two of them, one of which is killed.

What the workers compute is held to one process in tests/pipelines; here is that Ray Train starts them, that they start
again, and that the job's progress, events and student are as ever. That cancelling ends workers is seen on processes
of this machine (tests/pipelines/rounds) and passed here, too, before it was left out: a job more costs a minute.
"""

import os
import signal
import time
from pathlib import Path

from miniature import finished, miniature

from services.cli.client import GatewayClient
from services.cli.stack import Stack

WORKERS = {"count": 2, "cpus_per_worker": 0.25}
TEACHER = {"model": {"id": "./encoder"}, "max_length": 128, "dtype": "fp32", "replicas": 1, "cpus_per_replica": 0.5}


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


def test_two_workers_train_a_student_and_one_that_is_killed_comes_back(client: GatewayClient, stack: Stack) -> None:
    from sentence_transformers import SentenceTransformer

    spec = miniature(
        name="workers",
        training={"workers": WORKERS, "checkpoint_every_steps": 2},
        teacher=TEACHER | {"train": {"max_steps": 2, "dtype": "fp32"}},
    )
    job_id = client.submit(spec)["id"]
    until = time.monotonic() + 240
    while client.job(job_id)["progress"].get("step", 0) < 6:
        assert time.monotonic() < until, [event["message"] for event in client.events(job_id)]
        time.sleep(0.2)  # between looks at a job of another process
    victims = worker_pids()
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    job = finished(client, job_id)
    assert job["status"] == "succeeded", job["error"]
    assert job["attempt"] == 1, "the job's own process never noticed"
    events = [event["type"] for event in client.events(job_id)]
    assert events.count("training.planned") == 2, "the group began anew"
    assert events.count("training.finished") == 1
    assert "training.metrics" in events
    assert job["progress"]["step"] == job["progress"]["total_steps"] == 30
    folder = stack.root / "jobs" / job_id
    assert SentenceTransformer(str(folder / "artifacts" / "student"), device="cpu").encode(["flu"]).shape == (1, 32)
    assert not worker_pids()
