"""How a job row changes: one locked row, one checked transition, one event, in one transaction.

Everything that writes a job (the API, the reconciler, a driver) goes through these functions, so that there
is one place where a status can change and no way to change it without an event.

The row lock also orders events: all events of a job are inserted by transactions that hold its row, so their
ids grow in commit order, and a reader that continues after the last id it saw misses nothing.
"""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.errors import StateConflict
from services.store.models import EventRow, JobRow
from services.store.statuses import TERMINAL, may_follow

__all__ = ["add_event", "enter_phase", "lock_job", "set_status", "storable"]


def lock_job(session: Session, job_id: str) -> JobRow | None:
    """The job's row, held until the transaction ends (SELECT FOR UPDATE; on SQLite by BEGIN IMMEDIATE)."""
    return session.scalars(select(JobRow).where(JobRow.id == job_id).with_for_update()).one_or_none()


def add_event(  # one argument per column
    session: Session,
    row: JobRow,
    type_: str,
    message: str,
    *,
    now: float,
    data: dict[str, Any] | None = None,
    level: str = "info",
) -> None:
    """Insert an event of a job whose row is locked."""
    session.add(EventRow(job_id=row.id, created_at=now, level=level, type=type_, message=storable(message), data=data))


def set_status(
    session: Session,
    row: JobRow,
    wanted: str,
    *,
    now: float,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    """Move a locked job to `wanted`, close what the old status had open, and write the `job.status` event.

    Raises:
        StateConflict: the job's status does not allow it.
    """
    current = row.status
    if not may_follow(current, wanted):
        raise StateConflict(f"job {row.id} is {current}; it cannot become {wanted}")
    row.status = wanted
    row.reason = reason
    row.message = storable(message) if message is not None else None
    if wanted == "queued" or wanted in TERMINAL:
        enter_phase(row, None, now=now)
        row.lease_owner = row.lease_expires_at = None
    if wanted in TERMINAL:
        row.finished_at = now
    data: dict[str, Any] = {"from": current, "to": wanted, "attempt": row.attempt}
    if reason is not None:
        data["reason"] = reason
    text = f"{current} -> {wanted}" + (f": {message}" if message else "")
    add_event(session, row, "job.status", text, now=now, data=data, level="error" if wanted == "failed" else "info")


def enter_phase(row: JobRow, phase: str | None, *, now: float) -> None:
    """Close the open entry of the phase history and open one for `phase` (None: none is open)."""
    history = [dict(entry) for entry in row.phase_history]
    if history and history[-1]["finished_at"] is None:
        history[-1]["finished_at"] = now
    if phase is not None:
        history.append({"phase": phase, "attempt": row.attempt, "started_at": now, "finished_at": None})
    row.phase = phase
    row.phase_history = history


def storable(text: str) -> str:
    """The text without what PostgreSQL refuses to store: NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
