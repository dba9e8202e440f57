"""Assemble -> forward -> collect, overlapping: the next batch is put together while one is computed.

Enters: descriptions of batches, and a function for each stage. Leaves: results in order. A bounded number of batches
is on its way; an error in any stage reaches whoever takes the results, and nothing more is begun after it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Stages"]

Description = TypeVar("Description")
Batch = TypeVar("Batch")
Result = TypeVar("Result")


class Stages(Generic[Description, Batch, Result]):
    """One thread assembles, `workers` threads go forward, the caller's thread collects.

    The threads live as long as the object, so that several calls of `run` share them; `close` ends them.

    Args:
        assemble: makes a batch of its description.
        forward: begins a batch; returns a function that waits for its result.
        workers: threads for `forward`.
        ahead: batches that may be ready or done beyond those that are being computed.
    """

    def __init__(
        self,
        assemble: Callable[[Description], Batch],
        forward: Callable[[Batch], Callable[[], Result]],
        *,
        workers: int,
        ahead: int = 2,
    ) -> None:
        self._assemble = assemble
        self._forward = forward
        self._in_flight = workers + ahead
        self._assembling = ThreadPoolExecutor(1, thread_name_prefix="teacher-assemble")
        self._computing = ThreadPoolExecutor(workers, thread_name_prefix="teacher-forward")

    def run(self, descriptions: Iterable[Description]) -> Iterator[Result]:
        """The result of each description, in order; pulls `descriptions` a bounded number ahead."""
        under_way: deque[Future[Callable[[], Result]]] = deque()
        try:
            for description in descriptions:
                batch = self._assembling.submit(self._assemble, description)
                under_way.append(self._computing.submit(self._start, batch))
                if len(under_way) == self._in_flight:
                    yield under_way.popleft().result()()
            while under_way:
                yield under_way.popleft().result()()
        finally:
            for waiting in under_way:
                waiting.cancel()

    def close(self) -> None:
        """End the threads once what they have begun is done."""
        self._assembling.shutdown(wait=False)
        self._computing.shutdown(wait=False)

    def _start(self, batch: "Future[Batch]") -> Callable[[], Result]:
        return self._forward(batch.result())
