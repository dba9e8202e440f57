"""PoolScorer without a cluster: bounded, lazy, complete; it follows the pool's size and tells what is left to do.

The handle is played; what a real pool does is in tests/system.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import stamina
from pool_double import CONTRACT, VERSION, Handle, Texts, logits, reply, request
from ray.exceptions import ActorDiedError
from tiny import byte_pairs, texts_of

from pipelines.errors import DataError
from pipelines.teacher.scorer import ScoreRequest
from services.errors import TeacherNotDeployable
from services.teacher_pool import client
from services.teacher_pool.client import Pool, PoolScorer


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries happen at once: a test never sleeps."""
    stamina.set_testing(True, attempts=5)
    yield
    stamina.set_testing(False)


def scorer(handle: Any, replicas: Callable[[], int] = lambda: 1, **fields: Any) -> PoolScorer:
    return PoolScorer(
        CONTRACT,
        weights_version=VERSION,
        job="job-1",
        connect=lambda: Pool(name="t", handle=handle, replicas=replicas),
        deadline_s=600.0,
        **fields,
    )


def requests(count: int, pulled: list[int] | None = None) -> Iterator[ScoreRequest]:
    for key in range(count):
        if pulled is not None:
            pulled.append(key)
        yield request(key)


@pytest.mark.parametrize("num_pairs", [1, 7, 64, 1000])
def test_every_request_comes_back_with_its_logits(num_pairs: int) -> None:
    """Small ones share calls, large ones are cut: nobody sees that in the answers."""
    asked = [request(key, num_pairs) for key in range(20)]
    found = list(scorer(Handle(reply)).score_all(iter(asked), expected_pairs=20 * num_pairs))
    assert sorted(answer.key for answer in found) == list(range(20)), "each once"
    for answer in found:
        assert (answer.logits.dtype, answer.weights_version) == (np.float32, VERSION)
        np.testing.assert_array_equal(answer.logits, logits(texts_of(asked[answer.key].pairs)))


def test_a_scorer_knows_what_it_scores_under() -> None:
    pool = scorer(Handle(reply))
    assert (pool.contract, pool.weights_version) == (CONTRACT, VERSION)


def test_nothing_to_score_costs_no_call() -> None:
    """A chunk whose pairs are all known is still a request, so that it is committed in its turn."""
    handle = Handle(reply)
    (answer,) = scorer(handle).score_all([ScoreRequest(7, byte_pairs([]))], expected_pairs=0)
    assert (answer.key, answer.logits.shape, answer.weights_version) == (7, (0,), VERSION)
    assert not handle.calls
    assert list(scorer(handle).score_all([], expected_pairs=0)) == []


@pytest.mark.parametrize("replicas", [1, 3])
def test_two_calls_a_replica_are_on_their_way(replicas: int) -> None:
    """More would only queue at the replicas; fewer would let them idle. Each call waits for the others to come."""
    together = threading.Barrier(2 * replicas)

    def answer(texts: Texts) -> Any:
        if texts[0][0] != "q0":  # before it no pool is known
            together.wait(30)
        return reply(texts)

    handle = Handle(answer)
    count = 1 + 8 * replicas
    assert len(list(scorer(handle, lambda: replicas).score_all(requests(count), expected_pairs=64))) == count
    assert handle.most_at_once == 2 * replicas


def test_a_pool_that_grows_is_given_more_at_once() -> None:
    """Scaling is seen while calls run; nothing is asked for it."""
    size = [1]
    four = threading.Barrier(8)

    def answer(texts: Texts) -> Any:
        if int(texts[0][0][1:]) == 9:
            size[0] = 4
        if int(texts[0][0][1:]) >= 20:
            four.wait(30)
        return reply(texts)

    handle = Handle(answer)
    assert len(list(scorer(handle, lambda: size[0]).score_all(requests(36), expected_pairs=64))) == 36
    assert handle.most_at_once == 8


def test_requests_are_pulled_only_when_a_call_is_free() -> None:
    """A request is mined from tables when it is pulled: pulling all of them first would hold a corpus in memory."""
    pulled: list[int] = []
    scoring = scorer(Handle(reply)).score_all(requests(1000, pulled), expected_pairs=64000)
    assert pulled == []
    for taken in range(1, 6):
        next(scoring)
        assert len(pulled) <= 2 * (taken + 2), "at most two waves of calls ahead of what was taken"
    scoring.close()


def test_a_slow_replica_holds_up_nobody() -> None:
    """Results come as they finish: the first request ends last, all others pass it."""
    passed = threading.Event()

    def answer(texts: Texts) -> Any:
        if texts[0][0] == "q0":
            assert passed.wait(30)
        return reply(texts)

    order = []
    for number in scorer(Handle(answer)).score_all(requests(10), expected_pairs=640):
        order.append(number.key)
        if len(order) == 9:
            passed.set()
    assert order == [*range(1, 10), 0]


def test_a_killed_replica_is_not_seen_in_the_answers() -> None:
    deaths = iter([True, True])

    def answer(texts: Texts) -> Any:
        if texts[0][0] == "q3" and next(deaths, False):
            raise ActorDiedError
        return reply(texts)

    handle = Handle(answer)
    found = list(scorer(handle).score_all(requests(6), expected_pairs=384))
    assert sorted(answer.key for answer in found) == list(range(6))
    assert handle.calls == {f"q{key}": 3 if key == 3 else 1 for key in range(6)}


def test_poison_comes_with_the_answer_it_belongs_to() -> None:
    def answer(texts: Texts) -> Any:
        if ("q1", "p4") in texts:
            raise ActorDiedError
        return reply(texts)

    found = {answer.key: answer for answer in scorer(Handle(answer)).score_all(requests(3), expected_pairs=192)}
    assert [list(found[key].quarantined) for key in range(3)] == [[], [4], []]


def test_new_weights_are_answered_with_once_they_are_published() -> None:
    newer = dataclasses.replace(CONTRACT, weights_hash="cd")
    refreshed = threading.Event()

    def answer(texts: Texts) -> Any:
        if refreshed.is_set():
            return reply(texts, version=VERSION + 1, fingerprint=newer.fingerprint)
        return reply(texts)

    pool = scorer(Handle(answer))
    versions = []
    for found in pool.score_all(requests(12), expected_pairs=768):
        versions.append(found.weights_version)
        if len(versions) == 4:
            pool.expect(VERSION + 1, newer)
            refreshed.set()
    assert set(versions) == {VERSION, VERSION + 1}
    assert versions[-1] == pool.weights_version == VERSION + 1


def test_a_scorer_that_is_closed_early_starts_nothing_more() -> None:
    """The job was cancelled, or training failed: calls that wait are dropped, and no request is pulled."""
    pulled: list[int] = []
    handle = Handle(reply)
    scoring = scorer(handle).score_all(requests(1000, pulled), expected_pairs=64000)
    next(scoring)
    scoring.close()
    asked, taken = sum(handle.calls.values()), len(pulled)
    assert asked <= 2 * 2
    assert taken <= 2 * 2
    assert list(scoring) == []
    assert (sum(handle.calls.values()), len(pulled)) == (asked, taken)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool-call")]


def test_an_error_while_pulling_comes_through() -> None:
    """Cancellation is raised where requests are made; it must not wait for requests that nobody makes any more."""

    def breaking() -> Iterator[ScoreRequest]:
        yield request(0)
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        list(scorer(Handle(reply)).score_all(breaking(), expected_pairs=64))


def test_a_pool_that_cannot_be_had_is_asked_for_once() -> None:
    asked = []

    def connect() -> Pool:
        asked.append(1)
        raise TeacherNotDeployable("no such weights")

    pool = PoolScorer(CONTRACT, weights_version=0, job="j", connect=connect, deadline_s=1.0)
    with pytest.raises(TeacherNotDeployable):
        list(pool.score_all(requests(20), expected_pairs=1))
    assert asked == [1]


def test_the_backlog_is_told_while_it_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of what is on its way exactly, of what nobody pulled yet by the mean of those that were; then nothing."""
    monkeypatch.setattr(client, "_REPORT_EVERY_S", 0.0)
    told: list[tuple[int, float | None]] = []
    pool = scorer(Handle(reply), report=lambda *numbers: told.append(numbers))
    total = sum(int(request(key).pairs.lengths.sum()) for key in range(30))
    list(pool.score_all(requests(30), expected_pairs=30 * 256))
    backlogs = [backlog for backlog, _ in told]
    assert backlogs[-1] == 0
    assert 0.8 * total < backlogs[0] < 1.01 * total, "two calls of thirty may be done"
    assert all(backlog >= 0 for backlog in backlogs)
    assert {speed for _, speed in told if speed} == {10 * 256 / 0.5}, (
        "tokens over the seconds that replicas were at work"
    )
