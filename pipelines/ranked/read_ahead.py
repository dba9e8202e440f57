"""Compute the next items of a stream while the last one is used.

Enters: an iterator. Leaves: the same items, made in a thread of its own, a bounded number ahead. What the iterator
raises is raised here, in its place; closing this one ends that one soon.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

__all__ = ["Stopped", "read_ahead"]

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error: nobody wants the rest
    """Raised in the thread by `check` when the consumer has gone."""


class _End(Generic[T]):
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Callable[[Callable[[], None]], Iterator[T]], *, depth: int = 1) -> Generator[T, None, None]:
    """What `items(check)` yields.

    Args:
        items: makes the iterator, in the thread; it calls `check` whenever it has waited for something.
        depth: items that may lie ready; one more is being made.
    """
    ready: queue.Queue[T | _End[T]] = queue.Queue(maxsize=depth)
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise Stopped

    def put(item: T | _End[T]) -> None:
        while True:
            check()
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        error: BaseException | None = None
        try:
            for item in items(check):
                put(item)
        except Stopped:
            return
        except BaseException as found:  # noqa: BLE001 - it is raised where the items are used
            error = found
        try:
            put(_End(error))
        except Stopped:
            return

    threading.Thread(target=produce, name="read-ahead", daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        gone.set()  # and no join: whoever fails must not wait until a waiting thread looks up
