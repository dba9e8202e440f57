"""A Ray cluster of three nodes for the pool's own tests, with Serve driven as the gateway drives it: over REST.

The head holds no replica, so that a worker node can be taken away. Token auth is on, as everywhere.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
from ray import serve
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.cluster_utils import Cluster

from pipelines.teacher.contract import ScoreContract, contract_of
from pipelines.teacher.engine import TeacherEngine, load_engine
from pipelines.teacher.scorer import ScoreRequest
from pipelines.tokens import TokenPairs
from services.cli.ray_node import free_port
from services.store import Teacher
from services.teacher_pool import control
from services.teacher_pool.client import PoolScorer
from services.teacher_pool.control import PoolSettings, ServeControl
from services.teacher_pool.deployment import connect_pool, wait_until_running

HANG_AFTER_S = 5.0
CPUS_OF_A_WORKER = 4


class PoolCluster:
    """Head, two workers, and the pools that a test wants."""

    def __init__(self, faults: Path) -> None:
        self.faults = faults
        self.port = free_port()
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": self.port}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 150 * 1024**2})
        self.workers = [self.add_worker(), self.add_worker()]
        ray.init(address=self._cluster.address, log_to_driver=False)
        settings = PoolSettings(proxy_host="127.0.0.1", proxy_port=free_port(), hang_after_s=HANG_AFTER_S)
        self.proxy_url = f"http://127.0.0.1:{settings.proxy_port}"
        self.dashboard_url = f"http://127.0.0.1:{self.port}"
        self._control = ServeControl(self.dashboard_url, os.environ["RAY_AUTH_TOKEN"], settings)

    def add_worker(self) -> Any:
        return self._cluster.add_node(num_cpus=CPUS_OF_A_WORKER, object_store_memory=150 * 1024**2)

    def lose(self, worker: Any) -> None:
        """Pull the plug of a node."""
        self._cluster.remove_node(worker, allow_graceful=False)
        self.workers.remove(worker)

    def want(self, *teachers: Teacher, wait: bool = True) -> None:
        """Make these the pools, as the gateway's reconciler does each second."""
        until = time.monotonic() + 60
        while True:
            try:
                self._control.apply(teachers)
                break
            except Exception:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        if wait:
            for teacher in teachers:
                self.until(lambda teacher=teacher: self.is_up(teacher))

    def is_up(self, teacher: Teacher) -> bool:
        """Every replica runs, with the configuration that was asked for last."""
        application = serve.status().applications.get(teacher.name)
        running = application is not None and application.status == "RUNNING"
        return running and len(self.replicas(teacher.name)) == teacher.replicas

    def replicas(self, name: str) -> dict[int, str]:
        """Process -> node of the running replicas."""
        reply = httpx.get(
            f"{self.dashboard_url}/api/serve/applications/",
            headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"},
            timeout=30,
        )
        application = reply.raise_for_status().json()["applications"].get(name, {})
        found = application.get("deployments", {}).get("TeacherReplica", {}).get("replicas", [])
        return {item["pid"]: item["node_id"] for item in found if item["state"] == "RUNNING"}

    def exported(self) -> list[str]:
        """What each node exports to Prometheus."""
        ports = [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]
        return [httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text for port in ports]

    def until(self, what: Callable[[], bool], *, within_s: float = 90.0) -> None:
        """Wait for something of the cluster."""
        until = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < until, f"it did not happen within {within_s} s: {serve.status()}"
            time.sleep(0.2)

    def scorer(self, teacher: Teacher, *, job: str = "job", **fields: Any) -> PoolScorer:
        """A driver's client of that pool."""

        def connect() -> Any:
            patience: dict[str, Any] = {"check": lambda: None, "still_waiting": lambda _: None}
            wait_until_running(teacher.name, **patience)
            return connect_pool(teacher.name, **patience)

        contract = ScoreContract.from_dict(teacher.contract)
        return PoolScorer(
            contract,
            weights_version=teacher.weights_version,
            job=job,
            connect=connect,
            deadline_s=2 * HANG_AFTER_S + 60,
            **fields,
        )

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def pool_cluster(faults: Path) -> Iterator[PoolCluster]:
    """The cluster while the context is open; the environment that its processes inherit is put back after it."""
    faults.mkdir(parents=True, exist_ok=True)
    inherited = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_metrics_report_interval_ms": "3000",
        "DUALDISTILL_TEST_FAULTS": str(faults),
        "PYTHONPATH": str(Path(__file__).with_name("ray_side")),
    }
    before = {name: os.environ.get(name) for name in inherited}
    os.environ.update(inherited)
    reset_auth_token_state()  # Ray reads its environment once, and this process has imported it long ago
    import_path, control._IMPORT_PATH = control._IMPORT_PATH, "faulty_replica:app"
    try:
        cluster = PoolCluster(faults)
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        control._IMPORT_PATH = import_path
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        reset_auth_token_state()


def teacher_of(folder: Path, **fields: Any) -> Teacher:
    """The pool of the model in `folder`."""
    contract = contract_of(folder, model_id=folder.name, revision=None, max_length=48, dtype="fp32")
    defaults = {"cpus_per_replica": 0.5, "tokens_per_batch": 512, "replicas": 1}
    name = f"{folder.name}-{contract.fingerprint[:6]}"
    return Teacher(name=name, model_dir=str(folder), contract=contract.to_dict(), **defaults | fields)


def engine_of(teacher: Teacher) -> TeacherEngine:
    """The same teacher in this process."""
    import torch

    return load_engine(
        Path(teacher.model_dir),
        ScoreContract.from_dict(teacher.contract),
        device=torch.device("cpu"),
        threads=1,
        tokens_per_batch=512,
    )


def requests_of(teacher: Teacher, count: int, pairs_each: int, passage: Callable[[int], str]) -> list[ScoreRequest]:
    """`count` requests; their passages are `passage(number)` with one number for each pair of all."""
    from pipelines.teacher.pairs import PairEncoder

    encoder = engine_of(teacher).encoder
    assert isinstance(encoder, PairEncoder)
    made = []
    for key in range(count):
        texts = [passage(key * pairs_each + row) for row in range(pairs_each)]
        made.append(ScoreRequest(key, encoder.tokenize(["what is the cause of pain"] * pairs_each, texts)))
    return made


def logits_of(teacher: Teacher, pairs: TokenPairs) -> np.ndarray:
    """What a plain engine says."""
    engine = engine_of(teacher)
    try:
        return engine.score_pairs(pairs)
    finally:
        engine.close()
