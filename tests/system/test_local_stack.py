"""`dualdistill up` stops exactly what it started: all of it on Ctrl-C, and nothing that somebody else runs."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import httpx
import yaml
from miniature import miniature

from services.cli.stack import Stack
from services.store import Store


def processes_below(root: Path) -> set[int]:
    """Processes whose environment names this root: everything that a stack started."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if f"DUALDISTILL_ROOT={root}\0".encode() in environment:
                found.add(int(entry.name))
    return found


def start_up(root: Path, data_root: Path, *more: str) -> "subprocess.Popen[str]":
    """As a terminal would: shells start background jobs with Ctrl-C ignored, and children inherit that."""
    command = [str(Path(sys.executable).with_name("dualdistill")), "up", "--port", "0", "--dashboard-port", "0"]
    return subprocess.Popen(
        [*command, "--root", str(root), "--data-root", str(data_root), *more],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_until(stream: IO[str], text: str) -> list[str]:
    """Lines up to the first that holds `text`."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            break
    return lines


def assert_nothing_is_left(root: Path) -> None:
    until = time.monotonic() + 60
    while left := processes_below(root):
        assert time.monotonic() < until, f"left running: {left}"
        time.sleep(0.2)  # between looks at processes that are not ours to wait for


def test_a_signal_stops_everything_that_up_started(stack: Stack, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with start_up(root, tmp_path) as up:
        assert up.stdout is not None
        lines = read_until(up.stdout, "Ctrl-C stops both")
        assert any("Ray dashboard" in line for line in lines), lines
        assert len(processes_below(root)) > 3  # gateway, Ray head and its children
        up.send_signal(signal.SIGTERM)
        rest = up.stdout.read()
        assert up.wait(60) == 130
    assert "stopped Ray and the gateway" in rest
    assert_nothing_is_left(root)
    assert httpx.get(f"{stack.gateway_url}/readyz").status_code == 200, "another stack on the machine was hurt"


def test_ctrl_c_during_a_submitted_job_cancels_it(data_root: Path, tmp_path: Path) -> None:
    """Otherwise the next `up` on the same root would find it unfinished and go on with it."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(miniature(seed=9, training={"epochs": 200})))
    root = tmp_path / "root"
    with start_up(root, data_root, "--submit", str(tmp_path / "job.yaml")) as up:
        assert up.stdout is not None
        lines = read_until(up.stdout, "queued -> running")
        up.send_signal(signal.SIGINT)
        rest = up.stdout.read()
        assert up.wait(60) == 130
    assert "cancelled ddjob-" in rest
    assert_nothing_is_left(root)
    (job,) = Store(f"sqlite:///{root / 'dualdistill.db'}").list_jobs()
    assert job.status in {"cancelling", "cancelled"}, lines


def test_the_ray_dashboard_wants_the_token(stack: Stack) -> None:
    assert httpx.get(f"{stack.dashboard_url}/api/jobs/").status_code == 401
    token = stack.token_file.read_text().strip()
    assert httpx.get(f"{stack.dashboard_url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}).is_success
    assert stack.token_file.stat().st_mode & 0o077 == 0
