"""Attempts: patient with the pool, sharp with poison, deaf to errors of the science; on a played handle."""

import threading
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import stamina
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_double import CONTRACT, VERSION, Handle, Texts, logits, reply
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from tiny import byte_pairs

from pipelines.errors import Cancelled, ContractError, DataError, ModelError
from services.errors import TeacherNotDeployable, TeacherPoolError
from services.teacher_pool.attempts import Attempts, OutdatedWeights
from services.teacher_pool.breaker import CircuitBreaker

TRANSIENT: dict[str, Callable[[], Exception]] = {
    "killed replica": ActorDiedError,
    "unreachable replica": lambda: ActorUnavailableError("no answer", None),
    "full replicas": lambda: BackPressureError(9, 8),
    "redeployed pool": lambda: DeploymentUnavailableError(DeploymentID(name="TeacherReplica", app_name="t")),
    "call over its deadline": lambda: GetTimeoutError("600 s are over"),
    "call over Serve's deadline": lambda: TimeoutError("600 s are over"),
    "an error of torch": lambda: RayTaskError("score", "trace", RuntimeError("CUDA error")).as_instanceof_cause(),
}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries happen at once: a test never sleeps."""
    stamina.set_testing(True, attempts=20)
    yield
    stamina.set_testing(False)


def attempts(handle: Handle, *, retried: list[BaseException] | None = None, **fields: Any) -> Attempts:
    defaults: dict[str, Any] = {
        "ready": lambda: None,
        "reloading": lambda: repeat(None),
        "job": "job-1",
        "accepts": {VERSION: CONTRACT.fingerprint}.get,
        "deadline_s": 600.0,
        "on_retry": (retried if retried is not None else []).append,
        "breaker": CircuitBreaker(threshold=10**9),
    }
    return Attempts(handle, **defaults | fields)


def pairs(texts: Texts) -> Any:
    return byte_pairs(texts)


def many(count: int, poison: dict[int, str] | None = None) -> Texts:
    poison = poison or {}
    return [("query", poison.get(row, f"passage {row}")) for row in range(count)]


def deadly(texts: Texts) -> Any:
    """A teacher that dies of the word `deadly`, fails at `failing` and finds no number for `nan`."""
    if any("deadly" in passage for _, passage in texts):
        raise ActorDiedError
    if any("failing" in passage for _, passage in texts):
        raise RayTaskError("score", "trace", IndexError("index out of range\nmore")).as_instanceof_cause()
    answer = reply(texts)
    answer.logits[[passage == "nan" for _, passage in texts]] = np.nan
    return answer


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_call_that_a_replica_did_not_finish_is_repeated(kind: str) -> None:
    failing = iter([TRANSIENT[kind](), TRANSIENT[kind]()])

    def answer(texts: Texts) -> Any:
        if error := next(failing, None):
            raise error
        return reply(texts)

    retried: list[BaseException] = []
    handle = Handle(answer)
    scores = attempts(handle, retried=retried).score(pairs(many(5)))
    np.testing.assert_array_equal(scores.logits, logits(many(5)))
    assert (handle.sizes, len(retried)) == ([5, 5, 5], 2)
    assert handle.jobs == {"job-1"}
    assert handle.deadlines == {600.0}
    assert (set(scores.versions), scores.quarantined) == ({VERSION}, {})


@pytest.mark.parametrize("word", ["deadly", "failing"])
@pytest.mark.parametrize("row", [0, 77, 127])
def test_a_poison_pair_is_isolated_and_all_others_are_scored(word: str, row: int) -> None:
    texts = many(128, {row: word})
    handle = Handle(deadly)
    scores = attempts(handle).score(pairs(texts))
    assert list(scores.quarantined) == [row]
    good = np.arange(128) != row
    np.testing.assert_array_equal(scores.logits[good], logits(texts)[good])
    assert set(scores.versions[good]) == {VERSION}
    # Three whole calls; then one death a level, two for the pair alone, and one call for each innocent half.
    assert len(handle.sizes) == 3 + 2 * 7 + 1
    assert handle.sizes.count(1) >= 2, "a pair alone has a second chance"


def test_the_reason_is_one_line_in_words() -> None:
    scores = attempts(Handle(deadly)).score(pairs(many(4, {2: "failing"})))
    assert scores.quarantined == {2: "IndexError: index out of range"}
    scores = attempts(Handle(deadly)).score(pairs(many(4, {2: "deadly"})))
    assert scores.quarantined[2].startswith("ActorDiedError")


def test_a_logit_that_is_no_number_costs_no_second_call() -> None:
    handle = Handle(deadly)
    scores = attempts(handle).score(pairs(many(64, {9: "nan"})))
    assert scores.quarantined == {9: "teacher logit nan"}
    assert handle.sizes == [64]


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.integers(0, 199), st.sampled_from(["deadly", "failing", "nan"]), max_size=6))
def test_several_poison_pairs_are_found_wherever_they_are(poison: dict[int, str]) -> None:
    stamina.set_testing(True, attempts=20)
    texts = many(200, poison)
    scores = attempts(Handle(deadly)).score(pairs(texts))
    assert set(scores.quarantined) == set(poison)
    good = [row for row in range(200) if row not in poison]
    np.testing.assert_array_equal(scores.logits[good], logits(texts)[good])


def test_a_teacher_that_is_broken_is_no_matter_of_single_pairs() -> None:
    """All logits NaN: a user with bad weights learns it at the first call, not after a week of quarantine."""
    with pytest.raises(ModelError, match=r"17 of the first 17 pairs.*weights or dtype are broken"):
        attempts(Handle(deadly)).score(pairs(many(17, dict.fromkeys(range(17), "nan"))))


def test_two_deaths_by_chance_halve_nothing() -> None:
    deaths = iter([True, True])

    def answer(texts: Texts) -> Any:
        if next(deaths, False):
            raise ActorDiedError
        return reply(texts)

    handle = Handle(answer)
    attempts(handle).score(pairs(many(64)))
    assert handle.sizes == [64, 64, 64], "the same pairs together: the same bits"


def test_an_outage_is_nobody_s_fault() -> None:
    """Any number of times: pairs are suspected only of what happens while a replica has them."""
    away = iter([ActorUnavailableError("away", None)] * 15)

    def answer(texts: Texts) -> Any:
        if error := next(away, None):
            raise error
        return reply(texts)

    handle = Handle(answer)
    scores = attempts(handle).score(pairs(many(64)))
    assert (set(handle.sizes), scores.quarantined) == ({64}, {})


def test_a_pool_that_stays_away_ends_in_words() -> None:
    def answer(texts: Texts) -> Any:
        raise ActorUnavailableError("gone for good", None)

    with pytest.raises(TeacherPoolError, match=r"64 pairs could not be scored.*gone for good"):
        attempts(Handle(answer)).score(pairs(many(64)))


def test_an_error_of_the_science_is_not_repeated() -> None:
    """A query that is too long is too long on every replica. It arrives as Ray wraps it, and keeps its type."""
    cause = DataError("query 'what ...' has 70 tokens; teacher.max_length 64 leaves no room for a passage")

    def answer(texts: Texts) -> Any:
        raise RayTaskError("score", "a long traceback", cause).as_instanceof_cause()

    handle = Handle(answer)
    with pytest.raises(DataError):
        attempts(handle).score(pairs(many(64)))
    assert handle.sizes == [64]


@pytest.mark.parametrize(("version", "fingerprint"), [(VERSION, "another"), (VERSION + 1, CONTRACT.fingerprint)])
def test_scores_of_another_contract_or_of_unpublished_weights_are_refused(version: int, fingerprint: str) -> None:
    """They would be filed under this job's contract, and be reused as such for ever."""
    handle = Handle(lambda texts: reply(texts, version=version, fingerprint=fingerprint))
    with pytest.raises(ContractError, match=fingerprint):
        attempts(handle).score(pairs(many(2)))


def test_while_one_call_is_halved_the_deaths_it_causes_are_not_held_against_others() -> None:
    """Poison takes with it whatever waits in the same replica."""
    halving, release, deaths = threading.Event(), threading.Event(), iter([True] * 5)

    def answer(texts: Texts) -> Any:
        if any(passage == "deadly" for _, passage in texts):
            if len(texts) < 64:
                halving.set()
                assert release.wait(30)
            raise ActorDiedError
        if texts[0][0] == "innocent" and next(deaths, False):
            raise ActorDiedError
        return reply(texts)

    handle = Handle(answer)
    calls = attempts(handle)
    culprit = threading.Thread(target=calls.score, args=(pairs(many(64, {3: "deadly"})),))
    culprit.start()
    assert halving.wait(30)
    innocent: Texts = [("innocent", f"p{row}") for row in range(32)]
    scores = calls.score(pairs(innocent))
    release.set()
    culprit.join()
    assert scores.quarantined == {}
    assert handle.calls["innocent"] == 6, "five deaths, and it was never halved"


def test_stopping_cancels_what_is_on_its_way_and_starts_nothing_more() -> None:
    sent, stopped = threading.Event(), threading.Event()

    def answer(texts: Texts) -> Any:
        sent.set()
        assert stopped.wait(30)
        raise ActorUnavailableError("cancelled", None)

    handle = Handle(answer)
    calls = attempts(handle)
    errors: list[Exception] = []

    def score() -> None:
        try:
            calls.score(pairs(many(2)))
        except Exception as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    assert sent.wait(30)
    calls.stop()
    stopped.set()
    thread.join()
    assert handle.cancelled == 1
    assert [type(error) for error in errors] == [Cancelled]
    with pytest.raises(Cancelled):
        calls.score(pairs(many(2)))
    assert len(handle.sizes) == 1


def test_when_nothing_succeeds_calls_stop_knocking() -> None:
    """With an open breaker the calls' own retries are not used up; patience with the whole pool decides."""
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    breaker = CircuitBreaker(threshold=3, give_up_s=50, clock=lambda: now[0], pause=wait)

    def answer(texts: Texts) -> Any:
        raise ActorUnavailableError("away", None)

    with pytest.raises(TeacherPoolError, match="has not answered for"):
        attempts(Handle(answer), breaker=breaker).score(pairs(many(2)))


def only_newer(version: int) -> str | None:
    if version < VERSION:
        raise OutdatedWeights(version)
    return CONTRACT.fingerprint


def test_weights_may_take_any_time_to_load() -> None:
    """More answers of the old ones than a call has attempts; each is one wait, and none counts against the pool."""
    versions = iter([VERSION - 1] * 70 + [VERSION])
    waits: list[int] = []
    handle = Handle(lambda texts: reply(texts, version=next(versions)))

    def reloading() -> Iterator[None]:
        while True:
            waits.append(1)
            yield

    found = attempts(handle, accepts=only_newer, reloading=reloading).score(pairs(many(3)))
    assert list(found.versions) == [VERSION] * 3
    assert len(waits) == 70


def test_weights_that_nothing_can_load_end_the_call_at_once() -> None:
    handle = Handle(lambda texts: reply(texts, version=VERSION - 1))

    def reloading() -> Iterator[None]:
        yield
        raise TeacherNotDeployable("no such weights")

    with pytest.raises(TeacherNotDeployable, match="no such weights"):
        attempts(handle, accepts=only_newer, reloading=reloading).score(pairs(many(3)))
    assert sum(handle.calls.values()) == 2
