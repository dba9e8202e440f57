"""PoolHost: a teacher folder becomes a pool of replicas, by writing down that this job wants it.

Enters: a teacher folder and its contract. Leaves: a `PoolScorer`. The driver deploys nothing itself: it writes the
desired teacher to the store, the gateway's reconciler renders all desired teachers to Serve, and the pool goes when no
running job names it any more; so a crashed driver leaves no pool behind. A job whose scores are all known asks for
none.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.journal import Journal
from pipelines.spec import TeacherSpec
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import RankerScorer
from services.store import DriverSession, Teacher
from services.teacher_pool.client import Pool, PoolScorer
from services.teacher_pool.control import application_name
from services.teacher_pool.deployment import connect_pool, wait_until_running

__all__ = ["PoolHost"]


class PoolHost:
    """Hosts teachers on the cluster's shared pool.

    Args:
        session: of the job.
        job_id: the job's.
        spec: which teacher, and how many replicas of it.
        journal: told what happens.
        calibrations: where what calibrations find is kept.
        hang_after_s: after which a call counts as hung; its caller waits long enough to see its replica replaced.
        clock: Unix seconds.
    """

    def __init__(
        self,
        session: DriverSession,
        job_id: str,
        spec: TeacherSpec,
        journal: Journal,
        *,
        calibrations: Path,
        hang_after_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._session = session
        self._job_id = job_id
        self._spec = spec
        self._journal = journal
        self._calibrations = calibrations
        self._hang_after_s = hang_after_s
        self._clock = clock
        self._deadline_at: float | None = None

    @property
    def device_type(self) -> str:
        """A replica computes on a GPU if it books one."""
        return "cuda" if self._spec.gpus_per_replica > 0 else "cpu"

    @contextmanager
    def host(self, folder: Path, contract: ScoreContract) -> Iterator[RankerScorer]:
        """Score through the pool; it is asked for, and waited for, when the first pair needs a teacher."""

        def replace_weights(newer: Path, contract_of_newer: ScoreContract, weights_version: int) -> None:
            self._want(folder, contract)
            self._start_clock()  # of this version's scores: the ranker's own training took part of the last one's
            self._session.publish_weights(
                model_dir=str(newer), contract=contract_of_newer.to_dict(), weights_version=weights_version
            )

        yield PoolScorer(
            contract,
            weights_version=0,
            job=self._job_id,
            connect=lambda: self._pool(folder, contract),
            replace_weights=replace_weights,
            deadline_s=6 * self._hang_after_s,
            report=self._report,
        )

    def _want(self, folder: Path, contract: ScoreContract) -> str:
        """Write down that this job needs the pool; where it has it already, the pool keeps the weights it has."""
        name = application_name(contract)
        auto = self._spec.autoscale
        self._session.use_teacher(
            Teacher(
                name=name,
                model_dir=str(folder),
                contract=contract.to_dict(),
                mode="auto" if auto else "fixed",
                replicas=self._spec.replicas,
                min_replicas=auto.min_replicas if auto else 0,
                max_replicas=auto.max_replicas if auto else self._spec.replicas,
                cpus_per_replica=self._spec.cpus_per_replica,
                gpus_per_replica=self._spec.gpus_per_replica,
                tokens_per_batch=self._spec.tokens_per_batch,
                calibrations_dir=str(self._calibrations),
            )
        )
        return name

    def _pool(self, folder: Path, contract: ScoreContract) -> Pool:
        name = self._want(folder, contract)
        self._start_clock()
        asked = f"asked for {self._spec.replicas} replicas of {name}"
        self._journal.event("teacher_pool.requested", asked, teacher=name)
        check = self._journal.check_cancelled

        def still_waiting(why: str) -> None:
            self._journal.event("teacher_pool.waiting", f"waiting for {name}: {why}")

        running = wait_until_running(name, check=check, still_waiting=still_waiting)
        self._journal.event("teacher_pool.ready", f"{name}: {running} replicas are up", teacher=name, running=running)
        return connect_pool(name, check=check, still_waiting=still_waiting)

    def _start_clock(self) -> None:
        if auto := self._spec.autoscale:
            self._deadline_at = self._clock() + 60 * auto.finish_within_minutes

    def _report(self, backlog_tokens: int, tokens_per_second: float | None) -> None:
        self._session.report_demand(
            backlog_tokens=backlog_tokens, tokens_per_second=tokens_per_second, deadline_at=self._deadline_at
        )
