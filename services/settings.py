"""Operator settings, read once from the environment; nothing a user sends ever ends up here.

Every process (gateway, driver, replica) reads the same variables, so one env block configures a deployment.
"""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GATEWAY_PORT", "RAY_DASHBOARD_PORT", "SERVE_PORT", "Settings", "ray_token"]

GATEWAY_PORT = 8400
RAY_DASHBOARD_PORT = 8265
SERVE_PORT = 8410


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where things are and how long to wait. Durations are in seconds."""

    root: Path
    """Everything dualdistill writes: ranked lists, teachers, job artefacts, the SQLite file."""
    database_url: str
    data_roots: tuple[Path, ...]
    """Folders below which `dataset.path` and local model folders of jobs must lie."""
    ray_dashboard_url: str
    ray_token: str | None
    heartbeat_timeout_s: float
    """A running job whose driver has been silent for this long is taken from it and started again."""
    cancel_grace_s: float
    """How long a cancelled driver may take to stop by itself before its Ray Job is stopped."""
    max_attempts: int
    """Drivers started for one job before it fails with reason `driver_lost`."""
    max_running_jobs: int
    """Drivers at once. Each also needs room for its pool: more drivers than the cluster can serve would book all CPUs
    and wait for pools that cannot be placed."""
    driver_cpus: float
    """CPUs booked for a driver (it trains the student in process); its torch threads follow."""
    driver_gpus: float
    """GPUs booked for a driver; 0 trains the student on the CPU of a node without one."""
    serve_url: str = f"http://127.0.0.1:{SERVE_PORT}"
    """Where the gateway reaches the teacher pools' HTTP proxy; its port is the one that the proxy listens on."""
    serve_host: str = "127.0.0.1"
    """What the proxy binds to: loopback, unless the gateway runs on another machine than Ray's head."""
    lists_url: str | None = None
    """Where ranked lists are kept: a folder, or s3://bucket/prefix; None is below `root`."""
    hang_after_s: float = 600.0
    """A call that is in a replica's engine for longer than this counts as hung, and its replica is replaced."""

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read `DUALDISTILL_*`, and Ray's own token variables (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`)."""
        env = os.environ
        root = Path(env.get("DUALDISTILL_ROOT", ".dualdistill/local")).resolve()
        roots = env.get("DUALDISTILL_DATA_ROOTS", str(Path.cwd())).split(os.pathsep)
        return cls(
            root=root,
            database_url=env.get("DUALDISTILL_DATABASE_URL", f"sqlite:///{root / 'dualdistill.db'}"),
            data_roots=tuple(Path(item).resolve() for item in roots if item),
            ray_dashboard_url=env.get("DUALDISTILL_RAY_DASHBOARD_URL", "http://127.0.0.1:8265"),
            ray_token=ray_token(),
            serve_url=env.get("DUALDISTILL_SERVE_URL", cls.serve_url),
            serve_host=env.get("DUALDISTILL_SERVE_HOST", cls.serve_host),
            lists_url=_absolute(env.get("DUALDISTILL_LISTS_URL")),
            hang_after_s=float(env.get("DUALDISTILL_HANG_AFTER_S", cls.hang_after_s)),
            heartbeat_timeout_s=float(env.get("DUALDISTILL_HEARTBEAT_TIMEOUT_S", "120")),
            cancel_grace_s=float(env.get("DUALDISTILL_CANCEL_GRACE_S", "20")),
            max_attempts=int(env.get("DUALDISTILL_MAX_ATTEMPTS", "3")),
            max_running_jobs=int(env.get("DUALDISTILL_MAX_RUNNING_JOBS", "1")),
            driver_cpus=float(env.get("DUALDISTILL_DRIVER_CPUS", "1")),
            driver_gpus=float(env.get("DUALDISTILL_DRIVER_GPUS", "0")),
        )


def _absolute(place: str | None) -> str | None:
    """A folder by its whole path: a driver starts in another one than the gateway."""
    return place if not place or "://" in place else str(Path(place).resolve())


def ray_token() -> str | None:
    """The cluster's token: Ray's own variables say where it is."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path).read_text(encoding="utf-8").strip()
    return None
