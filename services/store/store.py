"""Jobs and events in one database: what the API and the command line read and write.

Enters: validated specs, ids. Leaves: frozen records. What drivers write goes through `DriverSession`, what
the reconciler writes through `ReconcilerSession`; both borrow this object's transactions. Synchronous on
purpose: a transaction takes milliseconds, callers in an event loop use a thread.

One clock per process stamps times; with several hosts, keep them in step (NTP) to well within the heartbeat
timeout.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from services.errors import JobNotFound, StateConflict
from services.store.engine import WRITING, make_engine
from services.store.ids import new_job_id
from services.store.migrate import migrate
from services.store.models import EventRow, JobRow
from services.store.records import Event, Job
from services.store.statuses import TERMINAL
from services.store.transitions import add_event, lock_job, set_status

__all__ = ["Store", "job_record"]


class Store:
    """The database at a URL. Safe to use from several threads; one per process is enough."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._engine = make_engine(url)
        self._writing_engine = self._engine.execution_options(**WRITING)

    def migrate(self) -> None:
        """Bring the tables to this version; any number of processes may do so at once."""
        migrate(self._writing_engine)

    def ping(self) -> None:
        """Raise whatever the database raises when it does not answer or has no tables."""
        with self.reading() as session:
            session.execute(text("SELECT 1 FROM jobs LIMIT 1"))

    def close(self) -> None:
        """Close pooled connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view; never waits for writers on SQLite."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: commits when the block ends, undoes everything when it raises.

        Raises:
            ValueError: something to be stored is not JSON, a NaN above all.
        """
        try:
            with Session(self._writing_engine) as session, session.begin():
                yield session
        except StatementError as error:
            if isinstance(error.orig, ValueError):
                raise error.orig from error
            raise

    # ---- jobs

    def create_job(
        self,
        spec: Mapping[str, Any],
        *,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        request_fingerprint: str = "",
    ) -> Job:
        """Commit a queued job. With a key that was used before, the earlier job is returned unchanged.

        The caller compares `request_fingerprint` to tell a retry from another request under the same key.
        """
        try:
            with self.writing() as session:
                if (earlier := _by_key(session, idempotency_key)) is not None:
                    return earlier
                row = _new_row(spec, metadata or {}, idempotency_key, request_fingerprint, self.clock())
                session.add(row)
                session.flush()
                data = {"from": None, "to": "queued", "attempt": 0}
                add_event(session, row, "job.status", "queued", now=row.created_at, data=data)
                return job_record(row)
        except IntegrityError:
            # Two requests with one key at once: the unique index let one through, answer with that one.
            with self.reading() as session:
                if (winner := _by_key(session, idempotency_key)) is None:
                    raise
                return winner

    def get_job(self, job_id: str) -> Job:
        """Read one job.

        Raises:
            JobNotFound: there is none of that id.
        """
        with self.reading() as session:
            row = session.get(JobRow, job_id)
            if row is None:
                raise JobNotFound(f"there is no job {job_id!r}")
            return job_record(row)

    def list_jobs(self, *, after: str | None = None, limit: int = 20, status: str | None = None) -> list[Job]:
        """Jobs, newest first, that come after the job id `after`."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        if after is not None:
            query = query.where(JobRow.id < after)
        if status is not None:
            query = query.where(JobRow.status == status)
        with self.reading() as session:
            return [job_record(row) for row in session.scalars(query)]

    def request_cancel(self, job_id: str) -> Job:
        """Ask for the end of a job: a queued one is cancelled at once, a running one becomes `cancelling`.

        Repeating it while the job is cancelling changes nothing.

        Raises:
            JobNotFound: there is none of that id.
            StateConflict: the job has already ended.
        """
        with self.writing() as session:
            row = lock_job(session, job_id)
            if row is None:
                raise JobNotFound(f"there is no job {job_id!r}")
            now = self.clock()
            if row.status in TERMINAL:
                raise StateConflict(f"job {job_id} has already ended: {row.status}")
            if row.status != "cancelling":
                row.cancel_requested_at = now
                wanted = "cancelling" if row.status in {"running", "pausing"} else "cancelled"
                set_status(session, row, wanted, now=now, reason="cancelled_by_user")
            session.flush()
            return job_record(row)

    # ---- events

    def add_event(
        self,
        job_id: str,
        type_: str,
        message: str,
        *,
        data: dict[str, Any] | None = None,
        level: str = "info",
    ) -> None:
        """Write an event that belongs to no driver."""
        with self.writing() as session:
            row = lock_job(session, job_id)
            if row is None:
                raise JobNotFound(f"there is no job {job_id!r}")
            add_event(session, row, type_, message, now=self.clock(), data=data, level=level)

    def list_events(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """Events of a job with an id above `after`, oldest first."""
        query = (
            select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
        )
        with self.reading() as session:
            return [
                Event(**{field.name: getattr(row, field.name) for field in fields(Event)})
                for row in session.scalars(query)
            ]


def job_record(row: JobRow) -> Job:
    """Copy a row into the record that leaves the store."""
    values = {field.name: getattr(row, field.name) for field in fields(Job) if field.name != "metadata"}
    return Job(**values, metadata=row.user_metadata)


def _by_key(session: Session, key: str | None) -> Job | None:
    if key is None:
        return None
    row = session.scalars(select(JobRow).where(JobRow.idempotency_key == key)).one_or_none()
    return None if row is None else job_record(row)


def _new_row(
    spec: Mapping[str, Any], metadata: Mapping[str, str], key: str | None, fingerprint: str, now: float
) -> JobRow:
    return JobRow(
        id=new_job_id(now),
        name=str(spec["name"]),
        status="queued",
        phase_history=[],
        spec=dict(spec),
        user_metadata=dict(metadata),
        progress={},
        idempotency_key=key,
        request_fingerprint=fingerprint,
        attempt=0,
        fencing_token=0,
        created_at=now,
    )
