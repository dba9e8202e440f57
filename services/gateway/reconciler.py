"""Makes the world agree with the jobs table: starts, replaces and ends drivers, sizes teacher pools.

Enters: the store, Ray's Jobs API, the teacher pool's control. Leaves: Ray Jobs and status transitions. It
keeps no state of jobs between ticks: whatever it was doing when it was killed, the next tick, here or in
another process, finds in the table and in Ray. Several may run at once, each write is bound to the fencing
token it was decided on:

    claimed, killed before the submit    the claim's lease runs out; requeued; the next claim has a new token
    submitted, killed before noting it   Ray knows the submission id, which holds the token; the next tick notes
    slept between claim and submit       its token is old by then: that driver is refused, and stopped

Ray not answering is never a reason to change a job.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from services.errors import RayUnavailable, TeacherPoolError
from services.gateway.ray_jobs import ENDED, RayJobs
from services.settings import Settings
from services.store import Demand, Job, ReconcilerSession, Teacher, TeacherTable
from services.teacher_pool.autoscale import target_replicas

__all__ = ["Reconciler", "TeacherPool"]

_log = logging.getLogger(__name__)

_LEAD_S = 10.0
_CLAIM_S = 30.0
_MESSAGE_CHARS = 1500


class TeacherPool(Protocol):
    """What the reconciler asks of `services.teacher_pool.control.ServeControl`."""

    def apply(self, teachers: Sequence[Teacher]) -> bool:
        """Make the cluster serve exactly these teachers; True when something had to change."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """One process's reconciler."""

    session: ReconcilerSession
    ray: RayJobs
    teachers: TeacherPool
    settings: Settings
    _said: dict[str, str] = field(default_factory=dict)
    """The last failure of each step, so that an outage is logged once and not every second."""

    def tick(self) -> None:
        """Look at every unfinished job and the teacher pools once; nothing while another process leads."""
        if not self.session.lead(_LEAD_S):
            return
        active, queued = self.session.active_jobs(), self.session.queued_jobs()
        if (active or queued) and self._guarded("Ray", self.ray.ping):
            for job in active:
                self._guarded(job.id, partial(self._watch, job))
            # Both again, because watching may have ended jobs or put them back: pools must not idle for a tick.
            room = max(0, self.settings.max_running_jobs - len(self.session.active_jobs()))
            for job in self.session.queued_jobs()[:room]:
                self._guarded(job.id, partial(self._start, job))
        self._guarded("teacher pools", self._size_pools)

    def _size_pools(self) -> None:
        table = TeacherTable(self.session.store)
        for teacher in table.wanted():
            if teacher.mode == "auto":
                demands = table.demands(teacher.name)
                wanted = target_replicas(teacher, demands, now=self.session.store.clock())
                if wanted != teacher.replicas and table.set_replicas(teacher.name, wanted, seen=teacher.replicas):
                    self._tell_scaled(teacher, wanted, demands)
        self.teachers.apply(table.wanted())

    def _tell_scaled(self, teacher: Teacher, wanted: int, demands: Sequence[Demand]) -> None:
        data = {"teacher": teacher.name, "from": teacher.replicas, "to": wanted}
        for demand in demands:
            backlog = f"{demand.backlog_tokens} tokens of this job to go"
            message = f"{teacher.name}: {teacher.replicas} -> {wanted} replicas, {backlog}"
            self.session.store.add_event(demand.job_id, "teacher_pool.scaled", message, data=data)

    def _start(self, job: Job) -> None:
        token = self.session.claim_for_start(job.id, _CLAIM_S)
        if token is not None:
            self._submit(job.id, token)

    def _submit(self, job_id: str, token: int) -> None:
        submission_id = _submission_id(job_id, token)
        if self.ray.get(submission_id) is None:
            self.ray.submit(
                f"python -m services.driver {job_id} {token}",
                submission_id=submission_id,
                num_cpus=self.settings.driver_cpus,
                num_gpus=self.settings.driver_gpus,
            )
        if not self.session.mark_submitted(job_id, token, submission_id):
            self.ray.stop(submission_id)  # cancelled or claimed anew while Ray was being asked

    def _watch(self, job: Job) -> None:
        if job.ray_submission_id is None:
            self._watch_claim(job)
            return
        ray_job = self.ray.get(job.ray_submission_id)
        gone = ray_job is None or ray_job.status in ENDED
        if job.status == "cancelling":
            self._watch_cancel(job, job.ray_submission_id, gone=gone)
        elif ray_job is None:
            self._lost(job, "Ray no longer knows the driver's job; was the cluster restarted?")
        elif ray_job.never_started:
            message = "the cluster had no room for the driver so far"
            self.session.requeue(job.id, job.fencing_token, message, started=False)
        elif gone:
            self._lost(job, f"the driver's Ray Job is {ray_job.status}: {_shortened(ray_job.message)}")
        elif ray_job.status == "PENDING":
            if self._silence(job) > self.settings.heartbeat_timeout_s / 4:
                self.session.excuse_silence(job.id, job.fencing_token)
        else:
            self._watch_heartbeat(job, job.ray_submission_id)

    def _watch_claim(self, job: Job) -> None:
        """A driver that Ray may or may not have been asked for."""
        if job.status == "cancelling":
            self.session.cancel_job(job.id, job.fencing_token)
            return
        expired = (job.lease_expires_at or 0.0) <= self.session.store.clock()
        if job.lease_owner != self.session.owner and not expired:
            return  # its claimant is at work
        submission_id = _submission_id(job.id, job.fencing_token)
        if self.ray.get(submission_id) is not None:
            self.session.mark_submitted(job.id, job.fencing_token, submission_id)
        elif expired:
            message = "a driver was claimed but never submitted"
            self.session.requeue(job.id, job.fencing_token, message, started=False)
        else:
            self._submit(job.id, job.fencing_token)

    def _watch_cancel(self, job: Job, submission_id: str, *, gone: bool) -> None:
        waited = self.session.store.clock() - (job.cancel_requested_at or 0.0)
        if gone:
            self.session.cancel_job(job.id, job.fencing_token)
        elif waited > self.settings.cancel_grace_s:
            self.ray.stop(submission_id)
            message = f"the driver had not stopped after {waited:.0f} s; its Ray Job was stopped"
            self.session.cancel_job(job.id, job.fencing_token, message)

    def _watch_heartbeat(self, job: Job, submission_id: str) -> None:
        """A silent driver is stopped first and replaced when Ray confirms its end, so that two never overlap.

        When Ray cannot end it within the grace, it is replaced nevertheless: the fencing token keeps it
        harmless.
        """
        silence = self._silence(job)
        if silence <= self.settings.heartbeat_timeout_s:
            return
        _log.warning("job %s: no heartbeat for %.0f s, stopping %s", job.id, silence, submission_id)
        self.ray.stop(submission_id)
        if silence > self.settings.heartbeat_timeout_s + self.settings.cancel_grace_s:
            self._lost(job, f"the driver gave no heartbeat for {silence:.0f} s and could not be stopped")

    def _silence(self, job: Job) -> float:
        now = self.session.store.clock()
        return now - (job.heartbeat_at if job.heartbeat_at is not None else now)

    def _lost(self, job: Job, why: str) -> None:
        if job.attempt < self.settings.max_attempts:
            done = self.session.requeue(job.id, job.fencing_token, why)
        else:
            message = f"{job.attempt} drivers were lost; the last time: {why}"
            done = self.session.fail_job(job.id, job.fencing_token, "driver_lost", message)
        if done:
            _log.warning("job %s lost driver %d: %s", job.id, job.attempt, why)

    def _guarded(self, what: str, step: Callable[[], object]) -> bool:
        """Run one step; its failure is logged and must not keep the others from running."""
        try:
            step()
        except (RayUnavailable, TeacherPoolError) as error:
            if self._said.get(what) != str(error):
                _log.warning("%s: %s; trying again", what, error)
            self._said[what] = str(error)
        except Exception:  # noqa: BLE001 - logged; one job that cannot be handled must not stop all others
            _log.exception("%s: the reconciler could not do its work; trying again", what)
        else:
            if self._said.pop(what, None) is not None:
                _log.info("%s: works again", what)
            return True
        return False


def _submission_id(job_id: str, token: int) -> str:
    return f"{job_id}-{token}"


def _shortened(message: str) -> str:
    """Ray's message with the log tail it ends with: the end is where the reason stands."""
    return message if len(message) <= _MESSAGE_CHARS else f"... {message[-_MESSAGE_CHARS:]}"
