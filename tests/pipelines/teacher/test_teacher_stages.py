"""Assembling, computing and collecting overlap; little is under way at once; an error anywhere reaches the caller."""

import threading
from collections.abc import Callable, Iterator

import pytest

from pipelines.teacher.stages import Stages


def started(value: int) -> Callable[[], int]:
    return lambda: value * 10


def test_results_come_in_order_whatever_takes_longest() -> None:
    first_may_end = threading.Event()

    def forward(value: int) -> Callable[[], int]:
        if value == 0:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return started(value)

    stages: Stages[int, int, int] = Stages(lambda number: number, forward, workers=2)
    assert list(stages.run(range(8))) == [number * 10 for number in range(8)]
    stages.close()


def test_the_next_batch_is_assembled_while_one_is_computed() -> None:
    second_is_assembled = threading.Event()

    def assemble(number: int) -> int:
        if number == 1:
            second_is_assembled.set()
        return number

    def forward(number: int) -> Callable[[], int]:
        if number == 0:
            assert second_is_assembled.wait(10), "assembling waited for the forward pass"
        return started(number)

    stages: Stages[int, int, int] = Stages(assemble, forward, workers=1)
    assert list(stages.run(range(3))) == [0, 10, 20]
    stages.close()


def test_workers_compute_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def forward(number: int) -> Callable[[], int]:
        both.wait()
        return started(number)

    stages: Stages[int, int, int] = Stages(lambda number: number, forward, workers=2)
    assert list(stages.run(range(4))) == [0, 10, 20, 30]
    stages.close()


def test_only_a_few_batches_are_under_way() -> None:
    # Pairs of a whole corpus must never be in memory as batches.
    taken = 0

    def descriptions() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    stages: Stages[int, int, int] = Stages(lambda number: number, started, workers=2, ahead=2)
    for done, _ in enumerate(stages.run(descriptions()), start=1):
        assert taken <= done + 4
    assert taken == 100
    stages.close()


@pytest.mark.parametrize("stage", ["describe", "assemble", "forward", "collect"])
def test_an_error_in_any_stage_reaches_the_caller_and_ends_the_work(stage: str) -> None:
    begun: list[int] = []

    def fail(here: str, number: int) -> None:
        if here == stage and number == 3:
            raise ValueError(f"broken in {here}")

    def descriptions() -> Iterator[int]:
        for number in range(50):
            fail("describe", number)
            yield number

    def assemble(number: int) -> int:
        fail("assemble", number)
        return number

    def forward(number: int) -> Callable[[], int]:
        begun.append(number)
        fail("forward", number)

        def collect() -> int:
            fail("collect", number)
            return number

        return collect

    stages: Stages[int, int, int] = Stages(assemble, forward, workers=1)
    with pytest.raises(ValueError, match=f"broken in {stage}"):
        list(stages.run(descriptions()))
    assert len(begun) < 10, "what follows an error must not be computed"
    assert list(stages.run([7])) == [7], "another call may use the same threads"
    stages.close()
