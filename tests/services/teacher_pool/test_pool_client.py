"""PoolScorer without a cluster: bounded, lazy, patient with dying replicas, and not with errors of the science.

The handle is played; what a real replica raises when it is killed is in tests/system.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import stamina
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from tiny import byte_pairs, texts_of

from pipelines.corpus.tokens import TokenPairs
from pipelines.errors import ContractError, DataError
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreRequest
from services.errors import TeacherPoolError
from services.teacher_pool.client import PoolScorer

CONTRACT = ScoreContract(model_id="m", revision=None, weights_hash="ab", max_length=64, dtype="fp32")


class Handle:
    """Stands where Serve's handle does: `handle.score.remote(...)` gives a reply that is waited for elsewhere."""

    def __init__(self, answer: Callable[[list[str], list[str]], Any]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.deadlines: set[float | None] = set()
        self.at_once = self.most_at_once = 0

    @property
    def score(self) -> "Handle":
        return self

    def remote(self, pairs: TokenPairs) -> "Reply":
        queries, passages = map(list, zip(*texts_of(pairs), strict=True))
        with self._lock:
            self.calls[queries[0]] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        return Reply(self, queries, passages)

    def answer(self, queries: list[str], passages: list[str]) -> Any:
        try:
            return self._answer(queries, passages)
        finally:
            with self._lock:
                self.at_once -= 1


class Reply:
    def __init__(self, handle: Handle, queries: list[str], passages: list[str]) -> None:
        self._handle, self._queries, self._passages = handle, queries, passages

    def result(self, timeout_s: float | None = None) -> Any:
        self._handle.deadlines.add(timeout_s)
        return self._handle.answer(self._queries, self._passages)


def logits(queries: list[str], passages: list[str]) -> tuple[str, np.ndarray]:
    """A pure function of the pairs, as a teacher is."""
    scores = [len(query) + 0.5 * len(passage) for query, passage in zip(queries, passages, strict=True)]
    return CONTRACT.fingerprint, np.array(scores, dtype=np.float32)


def request(key: int, pairs: int = 2) -> ScoreRequest:
    return ScoreRequest(key, byte_pairs([(f"q{key}", "p" * (key + number)) for number in range(pairs)]))


def scorer(handle: Any, in_flight: int = 2) -> PoolScorer:
    return PoolScorer(CONTRACT, weights_version=4, in_flight=in_flight, connect=lambda: handle)


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries happen at once: a test never sleeps."""
    stamina.set_testing(True, attempts=3)
    yield
    stamina.set_testing(False)


def deployment_unavailable() -> Exception:
    from ray.serve._private.common import DeploymentID

    return DeploymentUnavailableError(DeploymentID(name="TeacherReplica", app_name="teacher-a"))


TRANSIENT = {
    "killed replica": ActorDiedError,
    "unreachable replica": lambda: ActorUnavailableError("no answer", None),
    "full replicas": lambda: BackPressureError(9, 8),
    "redeployed pool": deployment_unavailable,
    "call over its deadline": lambda: GetTimeoutError("600 s are over"),
    "call over Serve's deadline": lambda: TimeoutError("600 s are over"),
}


def test_every_request_comes_back_with_its_logits() -> None:
    wanted = {key: logits(*map(list, zip(*texts_of(request(key).pairs), strict=True)))[1] for key in range(20)}
    found = list(scorer(Handle(logits)).score_all(map(request, range(20))))
    assert sorted(key for key, _ in found) == list(range(20)), "each once"
    for key, scores in found:
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(scores, wanted[key])


def test_a_scorer_knows_what_it_scores_under() -> None:
    pool = scorer(Handle(logits))
    assert (pool.contract, pool.weights_version) == (CONTRACT, 4)


def test_nothing_to_score_costs_no_call() -> None:
    """A chunk whose pairs are all known is still a request, so that it is committed in its turn."""
    handle = Handle(logits)
    ((key, scores),) = scorer(handle).score_all([ScoreRequest(7, byte_pairs([]))])
    assert (key, scores.shape, scores.dtype) == (7, (0,), np.dtype(np.float32))
    assert not handle.calls
    assert list(scorer(handle).score_all([])) == []


def test_every_call_has_a_deadline() -> None:
    handle = Handle(logits)
    list(scorer(handle).score_all(map(request, range(3))))
    assert None not in handle.deadlines


@pytest.mark.parametrize("in_flight", [1, 3])
def test_calls_in_flight_are_bounded_and_the_bound_is_used(in_flight: int) -> None:
    """More would only queue at the replicas; fewer would let replicas idle. Each call waits for the others to come."""
    together = threading.Barrier(in_flight)

    def answer(queries: list[str], passages: list[str]) -> Any:
        together.wait(30)
        return logits(queries, passages)

    handle = Handle(answer)
    assert len(list(scorer(handle, in_flight).score_all(map(request, range(4 * in_flight))))) == 4 * in_flight
    assert handle.most_at_once == in_flight


def test_requests_are_pulled_only_when_a_call_is_free() -> None:
    """A request is mined from tables when it is pulled: pulling all of them first would hold a corpus in memory."""
    pulled: list[int] = []

    def requests() -> Iterator[ScoreRequest]:
        for key in range(1000):
            pulled.append(key)
            yield request(key)

    scoring = scorer(Handle(logits), in_flight=2).score_all(requests())
    assert pulled == []
    for taken in range(1, 6):
        next(scoring)
        assert len(pulled) <= 2 * (taken + 1), "at most one wave of calls ahead of what was taken"
    scoring.close()


def test_a_slow_replica_holds_up_nobody() -> None:
    """Results come as they finish: the first request ends last, all others pass it."""
    passed = threading.Event()

    def answer(queries: list[str], passages: list[str]) -> Any:
        if queries[0] == "q0":
            assert passed.wait(30)
        return logits(queries, passages)

    order = []
    for key, _ in scorer(Handle(answer), in_flight=2).score_all(map(request, range(10))):
        order.append(key)
        if len(order) == 9:
            passed.set()
    assert order == [*range(1, 10), 0]


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_call_that_a_replica_did_not_finish_is_repeated(kind: str) -> None:
    failing = iter([TRANSIENT[kind](), TRANSIENT[kind]()])

    def answer(queries: list[str], passages: list[str]) -> Any:
        if queries[0] == "q3" and (error := next(failing, None)):
            raise error
        return logits(queries, passages)

    handle = Handle(answer)
    found = dict(scorer(handle).score_all(map(request, range(6))))
    assert sorted(found) == list(range(6))
    assert handle.calls == {f"q{key}": 3 if key == 3 else 1 for key in range(6)}


def test_a_pool_that_stays_away_ends_in_words() -> None:
    def answer(queries: list[str], passages: list[str]) -> Any:
        raise ActorDiedError

    handle = Handle(answer)
    with pytest.raises(TeacherPoolError, match="2 pairs could not be scored"):
        list(scorer(handle, in_flight=1).score_all([request(0)]))
    assert handle.calls == {"q0": 3}


def test_an_error_of_the_science_is_not_repeated() -> None:
    """A query that is too long is too long on every replica. It arrives as Ray wraps it, and keeps its type."""
    cause = DataError("query 'what ...' has 70 tokens; teacher.max_length 64 leaves no room for a passage")

    def answer(queries: list[str], passages: list[str]) -> Any:
        raise RayTaskError("score", "a long traceback", cause).as_instanceof_cause()

    handle = Handle(answer)
    with pytest.raises(DataError):
        list(scorer(handle, in_flight=1).score_all(map(request, range(5))))
    assert handle.calls == {"q0": 1}


def test_scores_of_another_contract_are_refused() -> None:
    """They would be filed under this job's contract, and be reused as such for ever."""

    def answer(queries: list[str], passages: list[str]) -> Any:
        return "another", logits(queries, passages)[1]

    with pytest.raises(ContractError, match="another"):
        list(scorer(Handle(answer)).score_all([request(0)]))


def test_a_scorer_that_is_closed_early_starts_nothing_more() -> None:
    """The job was cancelled, or training failed: calls that wait are dropped, and no request is pulled."""
    pulled: list[int] = []

    def requests() -> Iterator[ScoreRequest]:
        for key in range(1000):
            pulled.append(key)
            yield request(key)

    handle = Handle(logits)
    scoring = scorer(handle, in_flight=2).score_all(requests())
    next(scoring)
    scoring.close()
    asked, taken = sum(handle.calls.values()), len(pulled)
    assert asked <= taken <= 4
    assert list(scoring) == []
    assert (sum(handle.calls.values()), len(pulled)) == (asked, taken)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool-call")]


def test_an_error_while_pulling_comes_through() -> None:
    """Cancellation is raised where requests are made; it must not wait for requests that nobody makes any more."""

    def requests() -> Iterator[ScoreRequest]:
        yield request(0)
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        list(scorer(Handle(logits), in_flight=1).score_all(requests()))
