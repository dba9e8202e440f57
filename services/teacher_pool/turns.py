"""Turns: who may use a replica's engine next, when several jobs and people who wait share it.

Enters: batch calls of jobs, each with its weight in tokens, and interactive calls. Leaves: one batch call at a time, of
the job that has been served least (start-time fair queueing: Goyal, Vin, Cheng 1996), and a gate at which a running
batch call waits between two of its micro-batches while an interactive call is at work.
"""

import asyncio
import heapq
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

__all__ = ["Turns"]

_LONGEST_PAUSE_S = 1.0


class Turns:
    """The turns of one replica. Everything but `pause_for_people` belongs to the replica's event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._finishes: dict[str, float] = {}
        self._virtual = 0.0
        self._taken = False
        self._people = 0
        self._nobody_waits = threading.Event()
        self._nobody_waits.set()

    @property
    def depth(self) -> int:
        """Batch calls that wait for their turn."""
        return sum(not future.cancelled() for _, _, future in self._waiting)

    @asynccontextmanager
    async def turn(self, job: str, tokens: int) -> AsyncIterator[None]:
        """The engine is this call's while the context is open; waits until no other job is more entitled to it."""
        start = max(self._virtual, self._finishes.get(job, 0.0))
        self._finishes[job] = start + tokens
        if self._taken:
            future = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (start, next(self._numbers), future))
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._pass_on()  # the turn had come in the same moment
                raise
        self._taken = True
        self._virtual = max(self._virtual, start)
        try:
            yield
        finally:
            self._pass_on()

    @contextmanager
    def person(self) -> Iterator[None]:
        """An interactive call is at work while the context is open."""
        self._people += 1
        self._nobody_waits.clear()
        try:
            yield
        finally:
            self._people -= 1
            if not self._people:
                self._nobody_waits.set()

    @property
    def people(self) -> int:
        """Interactive calls at work."""
        return self._people

    def pause_for_people(self) -> None:
        """Called by a batch call's thread before each micro-batch: returns when no interactive call is at work.

        Or after a second: people who never stop asking slow a job down, they do not stop it.
        """
        self._nobody_waits.wait(_LONGEST_PAUSE_S)

    def _pass_on(self) -> None:
        self._taken = False
        while self._waiting:
            _, _, future = heapq.heappop(self._waiting)
            if not future.cancelled():
                self._taken = True
                future.set_result(None)
                return
        self._finishes.clear()  # nobody waits: no job is owed anything
