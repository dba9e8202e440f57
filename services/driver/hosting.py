"""PoolHost: a teacher folder becomes a pool of replicas, by writing down that this job wants it.

Enters: a teacher folder and its contract. Leaves: a `PoolScorer`. The driver deploys nothing itself: it writes the
desired teacher to the store, the gateway's reconciler renders all desired teachers to Serve, and the pool goes when no
running job names it any more; so a crashed driver leaves no pool behind. A job whose scores are all known asks for
none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.journal import Journal
from pipelines.spec import TeacherSpec
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import PairScorer
from services.store import DriverSession, Store, Teacher
from services.teacher_pool.client import PoolScorer, pool_handle, wait_until_running
from services.teacher_pool.control import application_name

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["PoolHost"]

_CALLS_PER_REPLICA = 2


class PoolHost:
    """Hosts teachers on the cluster's shared pool."""

    def __init__(
        self, store: Store, session: DriverSession, spec: TeacherSpec, journal: Journal, *, calibrations: Path
    ) -> None:
        self._store = store
        self._calibrations = calibrations
        self._session = session
        self._spec = spec
        self._journal = journal

    @property
    def device_type(self) -> str:
        """A replica computes on a GPU if it books one."""
        return "cuda" if self._spec.gpus_per_replica > 0 else "cpu"

    @contextmanager
    def host(self, folder: Path, contract: ScoreContract) -> Iterator[PairScorer]:
        """Score through the pool; it is asked for, and waited for, when the first pair needs a teacher."""
        yield PoolScorer(
            contract,
            weights_version=0,
            in_flight=_CALLS_PER_REPLICA * self._spec.replicas,
            connect=lambda: self._pool(folder, contract),
        )

    def _pool(self, folder: Path, contract: ScoreContract) -> "DeploymentHandle":
        name = application_name(contract.fingerprint)
        self._store.put_teacher(
            Teacher(
                name=name,
                model_dir=str(folder),
                contract=contract.to_dict(),
                replicas=self._spec.replicas,
                cpus_per_replica=self._spec.cpus_per_replica,
                gpus_per_replica=self._spec.gpus_per_replica,
                tokens_per_batch=self._spec.tokens_per_batch,
                calibrations_dir=str(self._calibrations),
            )
        )
        self._session.set_teacher(name)
        asked = f"asked for {self._spec.replicas} replicas of {name}"
        self._journal.event("teacher_pool.requested", asked, teacher=name)
        running = wait_until_running(
            name,
            check=self._journal.check_cancelled,
            still_waiting=lambda why: self._journal.event("teacher_pool.waiting", f"waiting for {name}: {why}"),
        )
        self._journal.event("teacher_pool.ready", f"{name}: {running} replicas are up", teacher=name, running=running)
        return pool_handle(name)
