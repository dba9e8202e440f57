"""A Ray cluster for one benchmark: own head with token auth, own pools, gone at the end.

Enters: how many CPUs Ray may book (it need not be true: replicas that sleep use none). Leaves: a `Cluster` that is told
its teachers as the gateway tells it, by `control.render` and one PUT, and says which replicas run.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.cli.ray_node import free_port, start_ray, stop_process, write_token
from services.store import Teacher
from services.teacher_pool.control import PoolSettings, render
from services.teacher_pool.messages import DEPLOYMENT_NAME

__all__ = ["Cluster", "running_cluster"]

BENCHMARKS = Path(__file__).resolve().parents[1]
SLEEPING = "pools.sleeping_replica:app"
_APPLICATIONS = "/api/serve/applications/"
_DEADLINE_S = 600.0


@dataclass(frozen=True)
class Cluster:
    """A running one."""

    env: dict[str, str]
    """For drivers: where the cluster is, and its token."""
    token: str
    pools: PoolSettings
    http: httpx.Client
    """To the dashboard."""

    def deploy(self, teachers: Sequence[Teacher], *, sleeping: dict[str, float] | None = None) -> None:
        """Make `teachers` what runs, and wait until their replicas do.

        Args:
            teachers: all of them.
            sleeping: none computes: by name, the tokens that a replica of it pretends to score in a second.
        """
        config = render(teachers, self.pools)
        if sleeping is not None:
            for application in config["applications"]:
                application["import_path"] = SLEEPING
                application["deployments"][0]["user_config"]["tokens_per_second"] = sleeping[application["name"]]
        reply = self.http.put(_APPLICATIONS, json=config)
        if reply.is_error:
            raise SystemExit(f"Serve refused the config: {reply.status_code} {reply.text[:1000]}")
        until = time.monotonic() + _DEADLINE_S
        wanted = {teacher.name: teacher.replicas for teacher in teachers if teacher.replicas}
        while (found := self._running()) != wanted:
            if time.monotonic() > until:
                raise SystemExit(f"{found} replicas run after {_DEADLINE_S:.0f} s, {wanted} were asked for")
            time.sleep(1)

    def url(self, teacher: str) -> str:
        """Where people ask a teacher."""
        return f"http://{self.pools.proxy_host}:{self.pools.proxy_port}/{teacher}"

    def pids(self, teacher: str) -> list[int]:
        """Processes of its replicas."""
        application = self.http.get(_APPLICATIONS).raise_for_status().json()["applications"][teacher]
        return [replica["pid"] for replica in application["deployments"][DEPLOYMENT_NAME]["replicas"]]

    def _running(self) -> dict[str, int]:
        """Replicas of each application; -1 while one of them comes or goes."""
        found = {}
        for name, application in self.http.get(_APPLICATIONS).raise_for_status().json()["applications"].items():
            if application["status"] == "DEPLOY_FAILED":
                raise SystemExit(f"{name} cannot be deployed: {application['message']}")
            deployment = application["deployments"].get(DEPLOYMENT_NAME)
            states = [replica["state"] for replica in deployment["replicas"]] if deployment else []
            settled = application["status"] == "RUNNING" and set(states) == {"RUNNING"}
            found[name] = len(states) if settled else -1
        return found


@contextmanager
def running_cluster(*, num_cpus: int, folder: Path) -> Iterator[Cluster]:
    """A head that books `num_cpus`; its token and its log are below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    token = write_token(folder / "token")
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")])),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    ray = start_ray(dashboard_port=free_port(), num_cpus=num_cpus, env=env, log=folder / "ray.log")
    try:
        pools = PoolSettings(proxy_host="127.0.0.1", proxy_port=free_port(), hang_after_s=600.0)
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=ray.dashboard_url, headers=headers, timeout=60, trust_env=False) as http:
            yield Cluster(env | {"RAY_ADDRESS": _address(ray.process.args)}, token, pools, http)
    finally:
        stop_process(ray.process)


def _address(command: Any) -> str:
    """Of the cluster's GCS: `start_ray` picked the port, and only the head's command line says which."""
    port = next(word.removeprefix("--port=") for word in command if word.startswith("--port="))
    return f"127.0.0.1:{port}"
