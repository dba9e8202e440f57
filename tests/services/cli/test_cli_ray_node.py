"""Ports, the token and child processes of the local stack, without Ray: what must hold before it is started."""

import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import ray_node
from services.cli.ray_node import child_of_this_process, free_port, start_ray, stop_process, write_token
from services.errors import RayUnavailable


def test_the_preferred_port_is_taken_when_it_is_free() -> None:
    port = free_port()
    assert free_port(port) == port


def test_a_busy_port_is_left_to_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        busy = listener.getsockname()[1]
        found = free_port(busy)
        assert found != busy
        assert found > 0


def test_a_port_busy_on_all_interfaces_is_busy() -> None:
    """Someone's server on 0.0.0.0 would otherwise share the port with ours, and get some of its calls."""
    with socket.create_server(("0.0.0.0", 0)) as listener:  # noqa: S104 - that is the point
        assert free_port(listener.getsockname()[1]) != listener.getsockname()[1]


def test_the_token_is_made_once_and_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Whoever reads it may run code on the cluster."""
    path = tmp_path / "new" / "token"
    token = write_token(path)
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert write_token(path) == token, "a second start on this root must reach what the first one left"
    assert write_token(tmp_path / "other") != token


@pytest.mark.parametrize("left", ["", "\n"])
def test_an_empty_token_file_is_written_again(tmp_path: Path, left: str) -> None:
    """`up` was killed between creating and writing it; an empty token would mean a cluster without one."""
    (tmp_path / "token").write_text(left)
    assert len(write_token(tmp_path / "token")) == 64


def test_a_token_file_that_others_could_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("ab" * 32)
    path.chmod(0o644)
    assert write_token(path) == "ab" * 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def child(code: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=child_of_this_process)


def test_a_child_is_stopped_and_an_ended_one_left_alone() -> None:
    running = child("import time; print('up', flush=True); time.sleep(600)")
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        stop_process(running)
        assert running.returncode == -15
        stop_process(running)  # a second time is nothing


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    stubborn = child(code)
    with stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        stop_process(stubborn, grace_s=0.1)
        assert stubborn.returncode == -9


def test_ray_that_ends_while_starting_is_a_sentence_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of waiting two minutes for a dashboard that will never answer."""
    binary = tmp_path / "bin" / "ray"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\necho no memory for you\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setattr(ray_node.sys, "executable", str(binary.with_name("python")))
    log = tmp_path / "ray.log"
    with pytest.raises(RayUnavailable, match=r"status 3 .*ray\.log"):
        start_ray(dashboard_port=free_port(), num_cpus=1, env={"RAY_AUTH_TOKEN": "ab"}, log=log)
    assert "no memory for you" in log.read_text()
