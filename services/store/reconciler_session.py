"""How a reconciler writes: claims with leases, and transitions that name the token they were decided on.

A reconciler reads a job, asks Ray about its driver, and decides; meanwhile the job may have moved on. So
every write here takes the token (or, for a claim, the status) that the decision was made for, and does
nothing and returns False or None when the job is no longer there. Any number of reconcilers may run; the
`lead` lease only saves duplicate traffic.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.store.models import JobRow, LeaseRow
from services.store.records import Job
from services.store.statuses import ACTIVE
from services.store.store import Store, job_record
from services.store.transitions import enter_phase, lock_job, set_status

__all__ = ["ReconcilerSession"]

_LEADER = "reconciler"


@dataclass(frozen=True)
class ReconcilerSession:
    """One reconciler process, known by `owner` (unique per process start)."""

    store: Store
    owner: str

    def lead(self, ttl_s: float) -> bool:
        """Become or stay the leading reconciler for `ttl_s` seconds; False while another one is."""
        now = self.store.clock()
        try:
            with self.store.writing() as session:
                row = session.get(LeaseRow, _LEADER, with_for_update=True)
                if row is None:
                    session.add(LeaseRow(name=_LEADER, owner=self.owner, expires_at=now + ttl_s))
                    return True
                if row.owner != self.owner and row.expires_at > now:
                    return False
                row.owner, row.expires_at = self.owner, now + ttl_s
                return True
        except IntegrityError:
            return False  # two started on an empty table at once, and the other one was first

    def resign(self) -> None:
        """Let another reconciler lead at once."""
        with self.store.writing() as session:
            row = session.get(LeaseRow, _LEADER, with_for_update=True)
            if row is not None and row.owner == self.owner:
                row.expires_at = self.store.clock()

    def queued_jobs(self) -> list[Job]:
        """Jobs that wait for a driver, oldest first."""
        return self._jobs("queued")

    def active_jobs(self) -> list[Job]:
        """Jobs that may have a driver, oldest first."""
        return self._jobs(*ACTIVE)

    def claim_for_start(self, job_id: str, ttl_s: float) -> int | None:
        """Take a queued job to start its next driver: a new fencing token, or None when it is not queued now.

        Until `mark_submitted`, the claim holds for `ttl_s` seconds; after that anyone may take it back.
        """
        with self.store.writing() as session:
            row = lock_job(session, job_id)
            if row is None or row.status != "queued":
                return None
            now = self.store.clock()
            row.fencing_token += 1
            row.attempt += 1
            row.ray_submission_id = row.heartbeat_at = None
            row.lease_owner, row.lease_expires_at = self.owner, now + ttl_s
            set_status(session, row, "running", now=now)
            enter_phase(row, "provisioning", now=now)
            return row.fencing_token

    def mark_submitted(self, job_id: str, token: int, submission_id: str) -> bool:
        """Note that Ray holds the driver of this claim; heartbeats are awaited from here on."""

        def note(_: Session, row: JobRow, now: float) -> None:
            row.ray_submission_id = submission_id
            row.lease_owner = row.lease_expires_at = None
            if row.heartbeat_at is None:
                row.heartbeat_at = now

        return self._change(job_id, token, ACTIVE, note)

    def excuse_silence(self, job_id: str, token: int) -> bool:
        """Restart the heartbeat timer of a driver that Ray has not started yet (it waits for resources)."""

        def note(_: Session, row: JobRow, now: float) -> None:
            row.heartbeat_at = now

        return self._change(job_id, token, ACTIVE, note)

    def requeue(self, job_id: str, token: int, message: str, *, started: bool = True) -> bool:
        """Put a running job whose driver is lost back in the queue; from here on that driver is refused.

        With `started=False` (claimed, but Ray never got it) the attempt is given back.
        """

        def back(session: Session, row: JobRow, now: float) -> None:
            set_status(session, row, "queued", now=now, reason="driver_lost", message=message)
            row.ray_submission_id = row.heartbeat_at = None
            if not started:
                row.attempt -= 1

        return self._change(job_id, token, frozenset({"running"}), back)

    def fail_job(self, job_id: str, token: int, reason: str, message: str) -> bool:
        """End a running job that cannot go on."""

        def end(session: Session, row: JobRow, now: float) -> None:
            set_status(session, row, "failed", now=now, reason=reason, message=message)
            row.error = {"code": reason, "message": message, "param": None}
            row.fencing_token += 1

        return self._change(job_id, token, frozenset({"running"}), end)

    def cancel_job(self, job_id: str, token: int, message: str | None = None) -> bool:
        """End a cancelling job whose driver is gone or out of time."""

        def end(session: Session, row: JobRow, now: float) -> None:
            set_status(session, row, "cancelled", now=now, reason="cancelled_by_user", message=message)
            row.fencing_token += 1

        return self._change(job_id, token, frozenset({"cancelling"}), end)

    def _jobs(self, *statuses: str) -> list[Job]:
        query = select(JobRow).where(JobRow.status.in_(statuses)).order_by(JobRow.id)
        with self.store.reading() as session:
            return [job_record(row) for row in session.scalars(query)]

    def _change(
        self,
        job_id: str,
        token: int,
        statuses: frozenset[str],
        change: Callable[[Session, JobRow, float], None],
    ) -> bool:
        with self.store.writing() as session:
            row = lock_job(session, job_id)
            if row is None or row.fencing_token != token or row.status not in statuses:
                return False
            change(session, row, self.store.clock())
            return True
