"""PoolScorer: a `PairScorer` whose pairs are scored by the replicas of one Serve application.

Enters: score requests, pulled lazily. Leaves: logits as they finish. The number of calls in flight is bounded (slow
replicas are simply given less), every call has a deadline, and calls that a dying or full replica did not finish are
repeated: scoring is pure, so repeating is safe. Errors of the science (a query too long) are not repeated.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import stamina
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipelines.errors import ContractError
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreRequest
from services.errors import TeacherNotDeployable, TeacherPoolError
from services.teacher_pool.replica import DEPLOYMENT_NAME

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["PoolScorer", "pool_handle", "wait_until_running"]

_TRANSIENT = (ActorDiedError, ActorUnavailableError, BackPressureError, DeploymentUnavailableError, TimeoutError)
_ATTEMPTS = 10
_CALL_DEADLINE_S = 600.0
_WORD_EVERY_S = 60.0


class PoolScorer:
    """Scores through one Serve application, `in_flight` calls at a time.

    `connect` gives the application's handle. It is called once, with the first pair that really needs a teacher: a job
    whose scores are all known never asks for a pool.
    """

    def __init__(
        self,
        contract: ScoreContract,
        *,
        weights_version: int,
        in_flight: int,
        connect: "Callable[[], DeploymentHandle]",
    ) -> None:
        self._contract = contract
        self._weights_version = weights_version
        self._in_flight = in_flight
        self._connect = connect
        self._connecting = threading.Lock()
        self._handle: DeploymentHandle | None = None
        self._refused: Exception | None = None

    @property
    def contract(self) -> ScoreContract:
        """What every reply is checked against."""
        return self._contract

    @property
    def weights_version(self) -> int:
        """The version of the weights that the job asked for."""
        return self._weights_version

    def score_all(self, requests: Iterable[ScoreRequest]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """(key, logits) per request, in the order in which they finish.

        Raises:
            TeacherPoolError: a call failed on every attempt.
            ContractError: a replica scores under another contract than the job's.
        """
        coming = iter(requests)
        with ThreadPoolExecutor(max_workers=self._in_flight, thread_name_prefix="pool-call") as pool:
            running: set[Future[tuple[int, npt.NDArray[np.float32]]]] = set()
            try:
                running |= {pool.submit(self._score, request) for request in islice(coming, self._in_flight)}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    answers = [call.result() for call in done]
                    running |= {pool.submit(self._score, request) for request in islice(coming, len(done))}
                    yield from answers
            finally:
                for call in running:
                    call.cancel()

    def _score(self, request: ScoreRequest) -> tuple[int, npt.NDArray[np.float32]]:
        if not len(request.pairs):
            return request.key, np.empty(0, dtype=np.float32)
        handle = self._connected()
        try:
            for attempt in stamina.retry_context(
                on=_TRANSIENT, attempts=_ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=15.0
            ):
                with attempt:
                    reply = handle.score.remote(request.pairs)
                    fingerprint, logits = reply.result(timeout_s=_CALL_DEADLINE_S)
        except _TRANSIENT as error:
            raise TeacherPoolError(
                f"{len(request.pairs)} pairs could not be scored in {_ATTEMPTS} attempts: {error}"
            ) from error
        if fingerprint != self._contract.fingerprint:
            raise ContractError(
                f"a replica scores under contract {fingerprint}, the job's is {self._contract.fingerprint}"
            )
        return request.key, np.asarray(logits, dtype=np.float32)

    def _connected(self) -> "DeploymentHandle":
        with self._connecting:
            if self._refused is not None:
                raise self._refused
            if self._handle is None:
                try:
                    self._handle = self._connect()
                except Exception as error:
                    self._refused = error  # the other calls in flight must not ask again
                    raise
            return self._handle


def pool_handle(name: str) -> "DeploymentHandle":
    """The handle of the application `name`, wherever in the cluster its replicas are."""
    handle: DeploymentHandle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=name)
    return handle


def wait_until_running(name: str, *, check: Callable[[], None], still_waiting: Callable[[str], None]) -> int:
    """Wait until the application `name` has a running replica; returns how many it has.

    There is no deadline: a pool may wait for CPUs that another job holds, and Serve itself gives up on replicas that
    cannot start.

    Args:
        name: the Serve application.
        check: called between looks; may raise to stop waiting (cancellation).
        still_waiting: told once a minute what Serve says.

    Raises:
        TeacherNotDeployable: Serve gave up on the application; says what Serve says.
    """
    next_word = time.monotonic() + _WORD_EVERY_S
    while True:
        check()
        message = "Serve does not know it yet"
        application = serve.status().applications.get(name)
        if application is not None:
            deployment = application.deployments.get(DEPLOYMENT_NAME)
            running = int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0
            if running:
                return running
            message = (deployment.message if deployment else "") or application.message or str(application.status)
            if application.status == "DEPLOY_FAILED":
                raise TeacherNotDeployable(f"teacher pool {name} failed to deploy: {message}")
        if time.monotonic() >= next_word:
            still_waiting(message)
            next_word += _WORD_EVERY_S
        time.sleep(0.5)
