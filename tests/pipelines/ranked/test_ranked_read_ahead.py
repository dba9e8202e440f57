"""Items are made ahead, in order; errors come in their place; whoever closes does not wait."""

import threading
from collections.abc import Callable, Iterator

import pytest

from pipelines.ranked.read_ahead import read_ahead


def test_items_come_in_order_and_the_next_is_made_meanwhile() -> None:
    made = [threading.Event() for _ in range(5)]

    def items(_: Callable[[], None]) -> Iterator[int]:
        for number in range(5):
            made[number].set()
            yield number

    stream = read_ahead(items)
    assert next(stream) == 0
    assert made[1].wait(5)
    assert list(stream) == [1, 2, 3, 4]


def test_no_more_are_made_than_fit() -> None:
    used = [-1]
    ahead: list[int] = []
    fourth = threading.Event()

    def items(_: Callable[[], None]) -> Iterator[int]:
        for number in range(100):
            ahead.append(number - used[0])
            if number == 3:
                fourth.set()
            yield number

    for number in read_ahead(items, depth=2):
        used[0] = number
        if number == 0:
            assert fourth.wait(5), "one in use, two that lie ready, one in the making"
    assert used == [99]
    assert max(ahead) <= 4


def test_an_error_comes_where_it_happened() -> None:
    def items(_: Callable[[], None]) -> Iterator[int]:
        yield 1
        raise ValueError("the second is broken")

    stream = read_ahead(items)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="the second is broken"):
        next(stream)


def test_closing_ends_the_iterator_and_waits_for_nobody() -> None:
    # An error in training must stop the scoring at once, not when a thread that waits for a chunk looks up.
    ended, go_on = threading.Event(), threading.Event()

    def items(check: Callable[[], None]) -> Iterator[int]:
        try:
            yield 1
            go_on.wait(30)
            check()
            raise AssertionError("nobody wanted more")
        finally:
            ended.set()

    stream = read_ahead(items)
    next(stream)
    stream.close()
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(5)
