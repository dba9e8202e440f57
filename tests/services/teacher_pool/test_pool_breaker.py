"""CircuitBreaker: closed, open, half open, and the end of patience; on a clock that only waiting moves."""

import threading

import pytest

from services.errors import TeacherPoolError
from services.teacher_pool.breaker import CircuitBreaker

DOWN = ConnectionError("no replica")


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time: Time) -> CircuitBreaker:
    return CircuitBreaker(threshold=3, give_up_s=100, clock=time, pause=time.pause)


def test_it_opens_after_failures_in_a_row_only(breaker: CircuitBreaker, time: Time) -> None:
    for _ in range(10):
        breaker.failed(DOWN)
        breaker.failed(DOWN)
        breaker.succeeded()
    breaker.wait()
    assert (breaker.is_open, time.now) == (False, 0)


def test_open_it_lets_one_call_try_after_a_pause_that_grows(breaker: CircuitBreaker, time: Time) -> None:
    pauses = []
    for _ in range(3):
        breaker.failed(DOWN)
    for _ in range(4):
        before = time.now
        breaker.wait()
        pauses.append(time.now - before)
        breaker.failed(DOWN)
    assert all(pauses)
    assert pauses[-1] > 3 * pauses[0]


def test_while_one_tries_all_others_wait(breaker: CircuitBreaker, time: Time) -> None:
    for _ in range(3):
        breaker.failed(DOWN)
    breaker.wait()
    tried_at = time.now
    breaker.wait()
    assert time.now > tried_at + 1, "the second caller waited once more"


def test_a_success_closes_it_for_everybody(breaker: CircuitBreaker, time: Time) -> None:
    for _ in range(5):
        breaker.failed(DOWN)
    breaker.succeeded()
    before = time.now
    for _ in range(5):
        breaker.wait()
    assert time.now == before


def test_patience_ends_with_the_last_reason(breaker: CircuitBreaker, time: Time) -> None:
    """Calls keep failing; each waits for its permission, and at last gets none."""

    def keep_calling() -> None:
        while True:
            breaker.wait()
            breaker.failed(DOWN)

    with pytest.raises(TeacherPoolError, match=r"has not answered for 1\d\d s.*no replica"):
        keep_calling()
    assert time.now < 200


def test_it_counts_right_from_many_threads() -> None:
    breaker = CircuitBreaker(threshold=1000)
    threads = [threading.Thread(target=lambda: [breaker.failed(DOWN) for _ in range(100)]) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.is_open
