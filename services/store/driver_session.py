"""How a driver writes: as the holder of one fencing token, refused as soon as a newer driver exists.

Every write locks the job's row and goes through only while the row still carries this session's token and the
job is running or cancelling; otherwise it raises `StaleDriver` and changes nothing. A driver that was paused
for an hour, cut off from the network or killed too late can therefore do no harm: it learns at its next write
that it has to stop.

Safe to use from several threads (a heartbeat thread beside the training loop). Short outages of the database
are waited out; ends (`succeed`, `fail`, `mark_cancelled`) may be repeated after a commit whose answer was
lost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import stamina
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from services.errors import ServiceError, StaleDriver, StateConflict
from services.store.models import DemandRow, JobRow, TeacherRow
from services.store.records import Job, Teacher
from services.store.statuses import ACTIVE, TERMINAL
from services.store.store import Store, job_record
from services.store.teacher_table import join_teacher
from services.store.transitions import add_event, enter_phase, lock_job, set_status

__all__ = ["DriverSession"]

_OUTAGE_S = 45.0  # well below the heartbeat timeout: a driver that waits longer is taken for lost anyway

_outlasting_outages = stamina.retry(on=OperationalError, attempts=None, timeout=_OUTAGE_S)
"""Repeats a session method while the database restarts or is locked."""


class DriverSession:
    """One driver's hold on one job."""

    def __init__(self, store: Store, job_id: str, fencing_token: int) -> None:
        self._store = store
        self._job_id = job_id
        self._token = fencing_token

    @_outlasting_outages
    def start(self) -> Job:
        """Take the job over from the reconciler that submitted this driver, and read it."""
        with self._owned() as (session, row):
            now = self._store.clock()
            row.started_at = row.started_at if row.started_at is not None else now
            row.heartbeat_at = now
            # A running driver is the proof of submission, even if the submitter died before noting it.
            row.ray_submission_id = row.ray_submission_id or f"{self._job_id}-{self._token}"
            row.lease_owner = row.lease_expires_at = None
            data = {"attempt": row.attempt, "fencing_token": self._token}
            add_event(session, row, "driver.started", f"driver {row.attempt} started", now=now, data=data)
            session.flush()
            return job_record(row)

    @_outlasting_outages
    def heartbeat(self) -> None:
        """Say that the driver lives."""
        with self._owned() as (_, row):
            row.heartbeat_at = self._store.clock()

    @_outlasting_outages
    def cancel_requested(self) -> bool:
        """Whether somebody asked for the job's end; a read, cheap enough for every batch."""
        with self._store.reading() as session:
            row = session.get(JobRow, self._job_id)
            if row is None or not self._owns(row):
                raise self._stale(row)
            return row.status == "cancelling"

    @_outlasting_outages
    def set_phase(self, phase: str) -> None:
        """Close the current phase and open `phase`; the one already open stays open."""
        with self._owned() as (session, row):
            if row.phase == phase:
                return
            now = self._store.clock()
            enter_phase(row, phase, now=now)
            data = {"phase": phase, "attempt": row.attempt}
            add_event(session, row, "job.phase", phase, now=now, data=data)

    @_outlasting_outages
    def set_progress(self, progress: dict[str, Any]) -> None:
        """Merge top-level keys into the job's progress; a NaN or infinity raises ValueError."""
        with self._owned() as (_, row):
            row.progress = {**row.progress, **progress}

    @_outlasting_outages
    def event(self, type_: str, message: str, data: dict[str, Any] | None = None, *, level: str = "info") -> None:
        """Write an event; `level` is info, warn or error."""
        with self._owned() as (session, row):
            add_event(session, row, type_, message, now=self._store.clock(), data=data, level=level)

    @_outlasting_outages
    def use_teacher(self, teacher: Teacher) -> None:
        """Need this teacher pool from now on, until the job ends; see `teacher_table.join_teacher`."""
        with self._owned() as (session, row):
            join_teacher(session, row, teacher, now=self._store.clock())

    @_outlasting_outages
    def report_demand(self, *, backlog_tokens: int, tokens_per_second: float | None, deadline_at: float | None) -> None:
        """Say how much the job still wants of its teacher pool, and how fast one replica was."""
        with self._owned() as (session, row):
            if row.teacher_name is None:
                raise ServiceError(f"job {row.id} has no teacher to want something of: use_teacher comes first")
            now = self._store.clock()
            session.merge(
                DemandRow(
                    job_id=row.id,
                    teacher_name=row.teacher_name,
                    backlog_tokens=backlog_tokens,
                    tokens_per_second=tokens_per_second,
                    deadline_at=deadline_at,
                    updated_at=now,
                )
            )
            if backlog_tokens:
                teacher = session.get_one(TeacherRow, row.teacher_name)
                teacher.used_at = now

    @_outlasting_outages
    def publish_weights(self, *, model_dir: str, contract: dict[str, Any], weights_version: int) -> None:
        """Give the job's teacher new weights; its replicas load them in place.

        Raises:
            StateConflict: others use this pool, or the version is not the next one (or the one that was published last,
                which may be repeated).
        """
        with self._owned() as (session, row):
            if row.teacher_name is None:
                raise ServiceError(f"job {row.id} has no teacher to give weights to: use_teacher comes first")
            teacher = session.get_one(TeacherRow, row.teacher_name, with_for_update=True)
            if teacher.pinned or _others_use(session, row):
                raise StateConflict(f"{teacher.name} is not this job's alone; others rely on the weights it has")
            if weights_version not in {teacher.weights_version, teacher.weights_version + 1}:
                raise StateConflict(
                    f"{teacher.name} has weights version {teacher.weights_version}, {weights_version} is not next"
                )
            now = self._store.clock()
            teacher.model_dir, teacher.contract, teacher.weights_version = model_dir, contract, weights_version
            teacher.updated_at = now
            data = {"teacher": teacher.name, "weights_version": weights_version}
            message = f"{teacher.name} gets weights version {weights_version}"
            add_event(session, row, "teacher_pool.weights", message, now=now, data=data)

    @_outlasting_outages
    def succeed(self, result: dict[str, Any]) -> str:
        """End well, and return the status the job ended in.

        That is `cancelled` when a cancel was accepted before: then the result is not kept.
        """

        def finish(session: Session, row: JobRow, now: float) -> None:
            row.result = result
            set_status(session, row, "succeeded", now=now)

        return self._finish("succeeded", finish)

    @_outlasting_outages
    def fail(self, reason: str, message: str, *, param: str | None = None) -> str:
        """End badly, with a machine word and a sentence a user understands; returns the final status."""

        def finish(session: Session, row: JobRow, now: float) -> None:
            set_status(session, row, "failed", now=now, reason=reason, message=message)
            row.error = {"code": reason, "message": message, "param": param}

        return self._finish("failed", finish, note=f"{reason}: {message}")

    @_outlasting_outages
    def mark_cancelled(self) -> str:
        """End because it was asked for; returns the final status.

        Raises:
            StateConflict: nobody asked.
        """

        def finish(session: Session, row: JobRow, now: float) -> None:
            set_status(session, row, "cancelled", now=now, reason="cancelled_by_user")

        return self._finish("cancelled", finish)

    def _finish(self, wanted: str, finish: Callable[[Session, JobRow, float], None], note: str | None = None) -> str:
        with self._store.writing() as session:
            row = lock_job(session, self._job_id)
            if row is not None and row.fencing_token == self._token and row.status == wanted:
                return wanted  # said before: the commit went through and only its answer was lost
            if row is None or not self._owns(row):
                raise self._stale(row)
            now = self._store.clock()
            if row.status == "cancelling":
                if note is not None:
                    add_event(session, row, "driver.failed", note, now=now, level="error")
                set_status(session, row, "cancelled", now=now, reason="cancelled_by_user")
            else:
                finish(session, row, now)
            return row.status

    @contextmanager
    def _owned(self) -> Iterator[tuple[Session, JobRow]]:
        with self._store.writing() as session:
            row = lock_job(session, self._job_id)
            if row is None or not self._owns(row):
                raise self._stale(row)
            yield session, row

    def _owns(self, row: JobRow) -> bool:
        return row.fencing_token == self._token and row.status in ACTIVE

    def _stale(self, row: JobRow | None) -> StaleDriver:
        found = "is gone" if row is None else f"is {row.status} under token {row.fencing_token}"
        return StaleDriver(f"job {self._job_id} {found}; this driver holds token {self._token} and must stop")


def _others_use(session: Session, job: JobRow) -> bool:
    """Whether another unfinished job names the teacher of `job`."""
    others = select(JobRow.id).where(
        JobRow.teacher_name == job.teacher_name, JobRow.id != job.id, JobRow.status.not_in(TERMINAL)
    )
    return session.scalars(others.limit(1)).first() is not None
