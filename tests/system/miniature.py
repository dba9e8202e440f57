"""The miniature job of the system tests, and what they look at from outside: the job, its processes, its rows."""

import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from deltalake import DeltaTable

from services.cli.client import GatewayClient
from services.cli.stack import Stack
from services.store import TERMINAL


def miniature(**sections: Any) -> dict[str, Any]:
    """The quickstart in miniature: same data, same shape of job, tiny models, few steps."""
    spec: dict[str, Any] = {
        "name": "miniature",
        "seed": 5,
        "dataset": {"path": "medquad", "unlabelled": {"max_queries": 120, "min_confidence": 0.2}},
        "teacher": {
            "model": {"id": "./encoder"},
            "max_length": 128,
            "dtype": "fp32",
            "train": {"max_steps": 3, "dtype": "fp32"},
            "replicas": 2,
            "cpus_per_replica": 0.5,
        },
        "student": {"model": {"id": "./encoder"}, "num_layers": 1, "max_length": 32},
        "candidates": {"bm25": {"top_k": 6}, "dense": {"top_k": 3}, "max_candidates": 8, "queries_per_chunk": 4},
        "training": {"queries_per_step": 8, "candidates_per_query": 4, "checkpoint_every_steps": 3},
        "evaluation": {"max_queries": 40, "rerank_depth": 5, "label_only_control": False},
    }
    for name, fields in sections.items():
        spec[name] = spec.get(name, {}) | fields if isinstance(fields, dict) else fields
    return spec


def finished(client: GatewayClient, job_id: str, *, within_s: float = 240.0) -> dict[str, Any]:
    """The job once it is terminal; fails the test with the job's events when that takes too long."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        job = client.job(job_id)
        if job["status"] in TERMINAL:
            return job
        time.sleep(0.2)
    messages = [event["message"] for event in client.events(job_id)]
    pytest.fail(f"job is {client.job(job_id)['status']} after {within_s} s; events: {messages}")


def driver_pids(job_id: str) -> list[int]:
    """Processes that run this job's driver, found by their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended while we looked
            if b"services.driver" in arguments and job_id.encode() in arguments:
                found.append(int(entry.name))
    return found


def replica_pids(stack: Stack, teacher: str | None) -> set[int]:
    """Processes of a teacher's running replicas, as this stack's own cluster names them."""
    token = stack.token_file.read_text().strip()
    reply = httpx.get(
        f"{stack.dashboard_url}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
    application = reply.raise_for_status().json()["applications"].get(teacher, {})
    replicas = application.get("deployments", {}).get("TeacherReplica", {}).get("replicas", [])
    return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}


def ranked_rows(root: Path, job_id: str) -> list[dict[str, object]]:
    """Every row of a job in every ranked-lists table below the root."""
    rows: list[dict[str, object]] = []
    for log in root.glob("ranked_lists/*/*/_delta_log"):
        rows += DeltaTable(str(log.parent)).to_pyarrow_table(filters=[("job_id", "=", job_id)]).to_pylist()
    return rows
