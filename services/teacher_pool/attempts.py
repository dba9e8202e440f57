"""One call until it is answered: repeated while replicas die or are away, bisected when it is the call that kills them.

Enters: pairs. Leaves: their logits, the version of the weights behind each, and the pairs that were given up, with the
reason. Scoring is pure, so repeating is safe. What tells a poison pair from bad luck:

    the replica is full, restarting, not there     not the call's doing: repeated, with waits that grow and jitter
    it has not loaded the newest weights yet       the same, and for as long as Serve has not given up on loading them
    the replica dies or fails with the call        may be the call's doing: after three times it is halved
    the half that is innocent                      is scored; the other is halved again, down to one pair
    a pair alone, twice                            is quarantined
    a logit that is NaN or infinite                is quarantined at once: the replica survived and named it

A hung replica is found by its own health check and killed by Serve, so it arrives here as one that died.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import stamina
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipelines.errors import Cancelled, ContractError, ModelError, PipelineError
from pipelines.tokens import TokenPairs
from services.errors import TeacherPoolError
from services.teacher_pool.breaker import CircuitBreaker
from services.teacher_pool.messages import ScoreReply

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

__all__ = ["Attempts", "OutdatedWeights", "Scores"]


class OutdatedWeights(Exception):  # noqa: N818 - a state that passes
    """A replica has not loaded the weights yet that were published last."""


_AWAY = (ActorUnavailableError, BackPressureError, DeploymentUnavailableError, TimeoutError)
_FAILED_WITH_IT = (ActorDiedError, RayTaskError)
_ATTEMPTS = 20
_FAILURES = 3
_FAILURES_ALONE = 2
_LEAST_ALLOWANCE = 16
_ALLOWED_SHARE = 0.001


@dataclass(frozen=True, eq=False)
class Scores:
    """What became of the pairs of one call."""

    logits: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int64]
    quarantined: dict[int, str] = field(default_factory=dict)
    """Row -> why it was given up; its logit means nothing."""
    num_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def joined(cls, one: "Scores", other: "Scores") -> "Scores":
        """The rows of `one`, then those of `other`."""
        return cls(
            np.concatenate([one.logits, other.logits]),
            np.concatenate([one.versions, other.versions]),
            one.quarantined | {len(one.logits) + row: why for row, why in other.quarantined.items()},
            one.num_tokens + other.num_tokens,
            one.seconds + other.seconds,
        )


class Attempts:
    """Makes calls through one handle. Safe to use from many threads.

    Args:
        handle: of the pool.
        ready: waits until the pool has a replica; asked before each call.
        reloading: gone through while a replica has older weights, with a wait each; raises when there is no hope.
        job: the job's id, for fair turns and metrics.
        accepts: the fingerprint that scores of a weights version must carry; None for a version nobody published;
            raises `OutdatedWeights` for one whose time is over.
        deadline_s: of one call; above the time after which a replica counts as hung.
        on_retry: told what made a call be repeated.
        breaker: shared by all calls.
    """

    def __init__(
        self,
        handle: "DeploymentHandle",
        *,
        ready: Callable[[], None],
        reloading: Callable[[], Iterator[None]],
        job: str,
        accepts: Callable[[int], str | None],
        deadline_s: float,
        on_retry: Callable[[BaseException], None],
        breaker: CircuitBreaker,
    ) -> None:
        self._handle = handle
        self._ready = ready
        self._reloading = reloading
        self._job = job
        self._accepts = accepts
        self._deadline_s = deadline_s
        self._on_retry = on_retry
        self._breaker = breaker
        self._lock = threading.Lock()
        self._bisecting = threading.Lock()
        self._live: set[DeploymentResponse[Any]] = set()
        self._given_up = self._scored = 0
        self._stopped = False

    def score(self, pairs: TokenPairs) -> Scores:
        """Scores of every pair that is no poison.

        Raises:
            TeacherPoolError: the pool does not answer, or more pairs are poison than a healthy teacher has.
            ContractError: a replica scores under another contract than the job's.
            PipelineError: what the user can mend, as the replica said it.
        """
        try:
            return self._answer(pairs, failures=_FAILURES)
        except _FAILED_WITH_IT as error:
            if isinstance(error, PipelineError):
                raise
            with self._bisecting:
                return self._halved(pairs, error)

    def stop(self) -> None:
        """Cancel calls on their way; the threads that wait for them get `Cancelled`."""
        self._stopped = True
        with self._lock:
            live = list(self._live)
        for reply in live:
            reply.cancel()

    def _halved(self, pairs: TokenPairs, error: BaseException) -> Scores:
        if len(pairs) == 1:
            return self._quarantine(Scores(np.full(1, np.nan, np.float32), np.full(1, -1)), {0: _words(error)})
        halves = []
        for rows in np.array_split(np.arange(len(pairs)), 2):
            half = pairs.take(rows)
            try:
                halves.append(self._answer(half, failures=_FAILURES_ALONE if len(half) == 1 else 1))
            except _FAILED_WITH_IT as again:
                if isinstance(again, PipelineError):
                    raise
                halves.append(self._halved(half, again))
        return Scores.joined(*halves)

    def _answer(self, pairs: TokenPairs, *, failures: int) -> Scores:
        counted = 0
        suspected = self._bisecting.locked  # by another thread: what kills replicas now is known, and is not this call
        bisected_here = failures != _FAILURES

        def again(error: Exception) -> bool:
            nonlocal counted
            if self._stopped or isinstance(error, PipelineError | TeacherPoolError):
                return False
            if isinstance(error, _FAILED_WITH_IT):
                counted += bisected_here or not suspected()
                if counted >= failures:
                    return False
            elif not isinstance(error, _AWAY):
                return False
            self._on_retry(error)
            return True

        try:
            for attempt in stamina.retry_context(
                on=again, attempts=_ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=15.0, wait_jitter=1.0
            ):
                with attempt:
                    return self._newest(pairs)
        except _AWAY as error:
            if self._stopped:
                raise Cancelled("the call was cancelled") from error
            raise TeacherPoolError(
                f"{len(pairs)} pairs could not be scored in {_ATTEMPTS} attempts: {error}"
            ) from error
        raise AssertionError("a retry loop neither returned nor raised")

    def _newest(self, pairs: TokenPairs) -> Scores:
        """An answer made by the weights that were published last, however long replicas take to load them."""
        reloading = self._reloading()
        while True:
            try:
                return self._checked(self._call(pairs))
            except OutdatedWeights as error:
                self._on_retry(error)
                next(reloading)

    def _call(self, pairs: TokenPairs) -> ScoreReply:
        self._breaker.wait()
        self._ready()
        if self._stopped:
            raise Cancelled("the call was not made: the job stops")
        response = self._handle.score.remote(pairs, job=self._job)
        with self._lock:
            self._live.add(response)
        try:
            reply: ScoreReply = response.result(timeout_s=self._deadline_s)
        except TimeoutError as error:
            response.cancel()
            self._breaker.failed(error)
            raise
        except Exception as error:
            if self._stopped:
                raise Cancelled("the call was cancelled") from error
            if isinstance(error, PipelineError):
                self._breaker.succeeded()
            else:
                self._breaker.failed(error)
            raise
        finally:
            with self._lock:
                self._live.discard(response)
        self._breaker.succeeded()
        return reply

    def _checked(self, reply: ScoreReply) -> Scores:
        wanted = self._accepts(reply.weights_version)
        if reply.contract_fingerprint != wanted:
            raise ContractError(
                f"a replica scores under contract {reply.contract_fingerprint} (weights version "
                f"{reply.weights_version}), the job's is {wanted}"
            )
        logits = np.asarray(reply.logits, dtype=np.float32)
        versions = np.full(len(logits), reply.weights_version)
        scores = Scores(logits, versions, num_tokens=reply.num_tokens, seconds=reply.seconds)
        with self._lock:
            self._scored += len(logits)
        broken = {int(row): f"teacher logit {logits[row]}" for row in np.flatnonzero(~np.isfinite(logits))}
        return self._quarantine(scores, broken) if broken else scores

    def _quarantine(self, scores: Scores, poison: dict[int, str]) -> Scores:
        with self._lock:
            self._given_up += len(poison)
            allowance = max(_LEAST_ALLOWANCE, int(_ALLOWED_SHARE * self._scored))
            if self._given_up > allowance:
                raise ModelError(
                    f"{self._given_up} of the first {self._scored} pairs cannot be scored, {allowance} would be borne; "
                    f"weights or dtype are broken: {next(iter(poison.values()))}"
                )
        return Scores(scores.logits, scores.versions, poison, scores.num_tokens, scores.seconds)


def _words(error: BaseException) -> str:
    """The first line of what a replica died of."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    name = type(cause).__name__
    return f"{name}: {str(cause).strip().splitlines()[0][:300]}" if str(cause).strip() else name
