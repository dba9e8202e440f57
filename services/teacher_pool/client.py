"""PoolScorer: a `PairScorer` whose pairs are scored by the replicas of one Serve application.

Enters: score requests, pulled lazily. Leaves: answers as they finish. Two calls per running replica are on their way,
one at work and one that waits beside it, however many replicas there are at the moment; so a slow replica is simply
given less, and one that comes or goes changes nothing but the speed.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest
from services.errors import TeacherPoolError
from services.teacher_pool.assembly import Assembly
from services.teacher_pool.attempts import Attempts, OutdatedWeights, Scores
from services.teacher_pool.breaker import CircuitBreaker
from services.teacher_pool.calls import Call, pack_calls
from services.teacher_pool.metrics import ClientMetrics

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["CALLS_PER_REPLICA", "Pool", "PoolScorer"]

CALLS_PER_REPLICA = 2
_MOST_CALLS = 1024
_REPORT_EVERY_S = 2.0
_NOTHING = Scores(np.empty(0, np.float32), np.empty(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A running application, as `connect` gives it."""

    name: str
    handle: "DeploymentHandle"
    replicas: Callable[[], int]
    """How many of them run now; cheap to ask."""
    wait: Callable[[], None] = lambda: None
    """Returns when one runs, at once if one does; a pool that fell asleep takes as long to come back as it takes."""
    reloading: Callable[[], Iterator[None]] = lambda: repeat(None)
    """Gone through while replicas load new weights, a moment each; raises when Serve gave up on that."""


class PoolScorer:
    """Scores through one Serve application.

    Args:
        contract: what every score is held to.
        weights_version: of the weights that have that contract.
        job: the job's id.
        connect: gives the application. Called once, with the first pair that really needs a teacher: a job whose scores
            are all known never asks for a pool.
        replace_weights: (folder, contract, version): gives the application new weights, in their own time; None where
            they are never replaced.
        deadline_s: of one call.
        report: told every two seconds, and at the end, how many tokens are still to be scored and how many a replica
            does in a second (None before that is known).
    """

    def __init__(
        self,
        contract: ScoreContract,
        *,
        weights_version: int,
        job: str,
        connect: Callable[[], Pool],
        replace_weights: Callable[[Path, ScoreContract, int], None] | None = None,
        deadline_s: float,
        report: Callable[[int, float | None], None] = lambda *_: None,
    ) -> None:
        self._contract = contract
        self._weights_version = weights_version
        self._published = {weights_version: contract.fingerprint}
        self._job = job
        self._connect = connect
        self._replace_weights = replace_weights
        self._deadline_s = deadline_s
        self._report = report
        self._connecting = threading.Lock()
        self._pool: Pool | None = None
        self._attempts: Attempts | None = None
        self._metrics: ClientMetrics | None = None
        self._refused: Exception | None = None
        self._scored_tokens = self._scored_seconds = 0.0
        self.retried: Counter[str] = Counter()
        """Calls that were repeated, by the kind of error."""

    @property
    def contract(self) -> ScoreContract:
        """What the first version of the weights is held to."""
        return self._contract

    @property
    def weights_version(self) -> int:
        """The newest version that was published."""
        return self._weights_version

    def publish(self, folder: Path, contract: ScoreContract, weights_version: int) -> None:
        """Give the pool the weights in `folder`; scores that a replica still makes with older ones are made again."""
        if self._replace_weights is None:
            raise TeacherPoolError(f"the weights of {contract.model_id} are not this job's to replace")
        self.expect(weights_version, contract)
        self._replace_weights(folder, contract, weights_version)

    def expect(self, weights_version: int, contract: ScoreContract) -> None:
        """From now on only answers of this version of the weights count, under its contract."""
        self._published[weights_version] = contract.fingerprint
        self._weights_version = max(self._weights_version, weights_version)

    def _accepts(self, weights_version: int) -> str | None:
        if weights_version < self._weights_version:
            raise OutdatedWeights(f"a replica still has version {weights_version} of {self._weights_version}")
        return self._published.get(weights_version)

    def score_all(self, requests: Iterable[ScoreRequest], *, expected_pairs: int) -> Iterator[ScoreAnswer]:
        """One answer per request, in the order in which they finish.

        Raises:
            TeacherPoolError: the pool does not answer.
            ContractError: a replica scores under another contract than the job's.
            ModelError: more pairs are poison than a healthy teacher has.
        """
        coming = pack_calls(requests)
        assembly = Assembly(self._weights_version)
        again: list[Call] = []
        running: dict[Future[Scores], Call] = {}
        backlog = _Backlog(expected_pairs)
        next_report = 0.0
        with ThreadPoolExecutor(max_workers=_MOST_CALLS, thread_name_prefix="pool-call") as threads:
            try:
                while True:
                    while len(running) < self._most_in_flight():
                        call = again.pop() if again else next(coming, None)
                        if call is None:
                            break
                        backlog.sent(call)
                        running[threads.submit(self._score, call)] = call
                    if not running:
                        break
                    done, _ = wait(running, timeout=_REPORT_EVERY_S, return_when=FIRST_COMPLETED)
                    for future in done:
                        call, scores = running.pop(future), future.result()
                        backlog.done(call)
                        answers, redo = assembly.add(call, scores)
                        again += redo
                        self._scored_tokens += scores.num_tokens
                        self._scored_seconds += scores.seconds
                        if scores.quarantined and self._metrics:
                            self._metrics.quarantined(len(scores.quarantined))
                        yield from answers
                    if time.monotonic() >= next_report:
                        self._tell(backlog.tokens, len(running))
                        next_report = time.monotonic() + _REPORT_EVERY_S
            finally:
                for future in running:
                    future.cancel()
                if running and self._attempts:
                    self._attempts.stop()
        self._tell(0, 0)

    def _score(self, call: Call) -> Scores:
        return self._connected().score(call.pairs()) if len(call) else _NOTHING

    def _most_in_flight(self) -> int:
        replicas = self._pool.replicas() if self._pool else 1
        return min(CALLS_PER_REPLICA * max(replicas, 1), _MOST_CALLS)

    def _tell(self, backlog_tokens: int, in_flight: int) -> None:
        if self._metrics is None:
            return
        speed = self._scored_tokens / self._scored_seconds if self._scored_seconds else None
        self._report(backlog_tokens, speed)
        self._metrics.state(backlog_tokens=backlog_tokens, in_flight=in_flight)

    def _note_retry(self, cause: BaseException) -> None:
        self.retried[type(cause).__name__] += 1
        if self._metrics:
            self._metrics.retried(cause)

    def _connected(self) -> Attempts:
        with self._connecting:
            if self._refused is not None:
                raise self._refused
            if self._attempts is None:
                try:
                    self._pool = self._connect()
                except Exception as error:
                    self._refused = error  # the other calls in flight must not ask again
                    raise
                self._metrics = ClientMetrics(self._pool.name, self._job)
                self._attempts = Attempts(
                    self._pool.handle,
                    ready=self._pool.wait,
                    reloading=self._pool.reloading,
                    job=self._job,
                    accepts=self._accepts,
                    deadline_s=self._deadline_s,
                    on_retry=self._note_retry,
                    breaker=CircuitBreaker(),
                )
            return self._attempts


class _Backlog:
    """Tokens still to be scored: exact for calls on their way, an estimate for pairs that nobody has pulled yet."""

    def __init__(self, expected_pairs: int) -> None:
        self._pairs_left = expected_pairs
        self._pairs_seen = self._tokens_seen = self._tokens_done = 0

    def sent(self, call: Call) -> None:
        self._pairs_left = max(0, self._pairs_left - len(call))
        self._pairs_seen += len(call)
        self._tokens_seen += call.num_tokens

    def done(self, call: Call) -> None:
        self._tokens_done += call.num_tokens

    @property
    def tokens(self) -> int:
        per_pair = self._tokens_seen / self._pairs_seen if self._pairs_seen else 0.0
        return self._tokens_seen - self._tokens_done + round(per_pair * self._pairs_left)
