"""What the store hands out: frozen copies of rows, so that nobody holds an open session by accident.

Times are Unix seconds (float, UTC). `fencing_token` counts the drivers a job was given to; a write that
carries an older one is refused.
"""

from dataclasses import dataclass
from typing import Any

from services.store.statuses import TERMINAL

__all__ = ["Demand", "Event", "Job", "Teacher"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One distillation job as it was at the moment of reading."""

    id: str
    name: str
    status: str
    reason: str | None
    """Stable machine word for why the job is where it is (`driver_lost`, `invalid_dataset` ...)."""
    message: str | None
    phase: str | None
    phase_history: list[dict[str, Any]]
    """`{phase, attempt, started_at, finished_at}` in order; the last one is open while the job works."""
    spec: dict[str, Any]
    metadata: dict[str, str]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    """`{code, message, param}` of a failed job."""
    idempotency_key: str | None
    request_fingerprint: str
    teacher_name: str | None
    attempt: int
    """Drivers started for this job, the present one included."""
    fencing_token: int
    lease_owner: str | None
    lease_expires_at: float | None
    heartbeat_at: float | None
    ray_submission_id: str | None
    """Null from the claim until Ray has confirmed that it holds the driver's Ray Job."""
    cancel_requested_at: float | None
    version: int
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def terminal(self) -> bool:
        """Nothing will change any more."""
        return self.status in TERMINAL


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job; ids of one job grow in the order in which they became visible."""

    id: int
    job_id: str
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The wanted state of one teacher pool; `weights_version` grows when it gets new weights."""

    name: str
    """Of its Serve application: what people read in the Ray dashboard."""
    model_dir: str
    contract: dict[str, Any]
    mode: str = "fixed"
    """fixed: `replicas` is what was asked for; auto: the reconciler sets it, within min and max, by the backlog."""
    replicas: int = 1
    """Wanted now; 0 takes the application away."""
    min_replicas: int = 0
    max_replicas: int = 1
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    tokens_per_batch: int | None = None
    """None: found by a calibration, which is kept in `calibrations_dir`."""
    calibrations_dir: str | None = None
    weights_version: int = 0
    pinned: bool = False
    """Somebody created it by name: it stays when no job needs it."""
    scaled_by_user: bool = False
    """Somebody set its size: jobs that come later do not change it."""
    scaled_at: float | None = None
    used_at: float | None = None
    """Last time that a job had a backlog for it, or that somebody asked it to rerank."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one unfinished job still wants of its teacher pool."""

    job_id: str
    backlog_tokens: int
    tokens_per_second: float | None
    """Of one replica, measured; None before its first call is done."""
    deadline_at: float | None
    """When the backlog should be gone; None: the job does not say."""
