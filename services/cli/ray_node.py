"""A local Ray head as a child process: started with token auth, stopped by its pid, nothing left behind.

Enters: a folder, ports, an environment. Leaves: a running head whose dashboard answers; `stop` ends it and, through
Ray's own reaper, every process it started. `ray stop` is never used: it would end other people's clusters too.
"""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.errors import RayUnavailable

__all__ = ["LocalRay", "child_of_this_process", "free_port", "start_ray", "stop_process", "write_token"]

_OBJECT_STORE_BYTES = 512 * 1024 * 1024
_START_DEADLINE_S = 120.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def child_of_this_process() -> None:
    """Run in a child before exec: own session (Ctrl-C is ours to handle), SIGTERM if we die without saying so."""
    os.setsid()
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port(preferred: int = 0) -> int:
    """`preferred` if nothing listens on it at 127.0.0.1, else a port the kernel picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def write_token(path: Path) -> str:
    """The cluster's shared token, made once per root and readable by its owner only."""
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():  # empty: we were killed before the write
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="utf-8")
    path.chmod(0o600)
    return path.read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class LocalRay:
    """A running head."""

    process: subprocess.Popen[bytes]
    dashboard_url: str


def start_ray(*, dashboard_port: int, num_cpus: int, env: Mapping[str, str], log: Path) -> LocalRay:
    """Start a head on 127.0.0.1 and wait until its dashboard answers.

    Args:
        dashboard_port: for the dashboard; all other ports are picked by the kernel.
        num_cpus: CPUs that Ray may book.
        env: of the head and all its workers; must hold the token.
        log: file for the head's output.

    Raises:
        RayUnavailable: it ended or did not answer in time; names the log.
    """
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a fixed command, no shell
            command,
            env=dict(env),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=child_of_this_process,  # noqa: PLW1509 - runs before any thread of ours exists
        )
    try:
        return LocalRay(process, _wait_for_dashboard(process, dashboard_port, env["RAY_AUTH_TOKEN"], log))
    except BaseException:  # also Ctrl-C: what was started is stopped
        stop_process(process)
        raise


def _wait_for_dashboard(process: "subprocess.Popen[bytes]", port: int, token: str, log: Path) -> str:
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {token}"}
    until = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RayUnavailable(f"Ray ended with status {process.returncode} while starting; see {log}")
        try:
            if httpx.get(f"{url}/api/jobs/", headers=headers, timeout=5, trust_env=False).is_success:
                return url
        except httpx.HTTPError:
            pass  # not up yet: the deadline decides
        time.sleep(0.3)
    raise RayUnavailable(f"the Ray dashboard did not answer within {_START_DEADLINE_S:.0f} s; see {log}")


def stop_process(process: "subprocess.Popen[bytes]", grace_s: float = 30.0) -> None:
    """SIGTERM, wait, SIGKILL if need be. A process that has ended is left alone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
