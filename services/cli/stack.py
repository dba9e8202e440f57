"""The local stack of `dualdistill up`: Ray head, gateway, SQLite, one root folder; up together, down together.

Enters: a root, data roots, ports. Leaves: a context in which the service answers on 127.0.0.1. Both children get their
settings from the environment, the same variables that a container deployment sets.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipelines.devices import available_cpus
from services.cli.ray_node import child_of_this_process, free_port, start_ray, stop_process, write_token
from services.errors import ServiceError
from services.settings import GATEWAY_PORT, RAY_DASHBOARD_PORT, SERVE_PORT

__all__ = ["Stack", "local_stack"]

_GATEWAY_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Stack:
    """Where the running service is."""

    gateway_url: str
    dashboard_url: str
    token_file: Path
    root: Path
    gateway_pid: int
    ray_pid: int


@contextmanager
def local_stack(
    *, root: Path, data_roots: tuple[Path, ...], port: int = GATEWAY_PORT, dashboard_port: int = RAY_DASHBOARD_PORT
) -> Iterator[Stack]:
    """Start the stack; on leaving the context, however that happens, stop exactly what was started.

    Ports that are taken are replaced by free ones; the `Stack` says which.

    Raises:
        ServiceError: Ray or the gateway does not come up; names the log file.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    token_file = root / "ray_auth_token"
    token = write_token(token_file)
    port, dashboard_port = free_port(port), free_port(dashboard_port)
    # Serve opens its port with the first teacher, maybe hours from now: until then a stack that runs beside this one
    # would find it free. Whoever has the default dashboard port has the default one of Serve, too.
    serve_port = free_port(SERVE_PORT if dashboard_port == RAY_DASHBOARD_PORT else 0)
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # A hung replica cannot be asked to end: Serve must kill one whose health check fails.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # a whole cluster that stops has nowhere to drain to
        "DUALDISTILL_ROOT": str(root),
        "DUALDISTILL_DATABASE_URL": f"sqlite:///{root / 'dualdistill.db'}",
        "DUALDISTILL_DATA_ROOTS": os.pathsep.join(str(folder) for folder in data_roots),
        "DUALDISTILL_RAY_DASHBOARD_URL": f"http://127.0.0.1:{dashboard_port}",
        "DUALDISTILL_SERVE_URL": f"http://127.0.0.1:{serve_port}",
        "DUALDISTILL_SERVE_HOST": "127.0.0.1",
        "DUALDISTILL_MAX_RUNNING_JOBS": str(max(1, available_cpus() // 4)),
    }
    # A driver and a pool must fit at the same time, also on one core.
    num_cpus = max(2, available_cpus())
    ray = start_ray(dashboard_port=dashboard_port, num_cpus=num_cpus, env=env, log=logs / "ray.log")
    try:
        gateway = _start_gateway(port, env, logs / "gateway.log")
        try:
            url = _wait_for_gateway(gateway, port, logs / "gateway.log")
            yield Stack(url, ray.dashboard_url, token_file, root, gateway.pid, ray.process.pid)
        finally:
            stop_process(gateway)
    finally:
        stop_process(ray.process)


def _start_gateway(port: int, env: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "uvicorn", "services.gateway.app:create_app", "--factory"]
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - a fixed command, no shell
            [
                *command,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--no-access-log",
                "--timeout-graceful-shutdown",
                "3",
            ],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=child_of_this_process,  # noqa: PLW1509 - no thread of ours exists yet
        )


def _wait_for_gateway(gateway: "subprocess.Popen[bytes]", port: int, log: Path) -> str:
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + _GATEWAY_DEADLINE_S
    while time.monotonic() < until:
        if gateway.poll() is not None:
            raise ServiceError(f"the gateway ended with status {gateway.returncode} while starting; see {log}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success:
                return url
        except httpx.HTTPError:
            pass  # not up yet: the deadline decides
        time.sleep(0.2)
    raise ServiceError(f"the gateway was not ready within {_GATEWAY_DEADLINE_S:.0f} s; see {log}")
