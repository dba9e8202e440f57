"""StoreJournal: a run's journal, kept in the store under the driver's fencing token.

Enters: phases, progress, events from any thread. Leaves: rows. Progress is written at most every half second, because
it comes with every batch; everything else is written at once. A heartbeat thread says that the driver lives.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import Cancelled
from services.store import DriverSession

__all__ = ["StoreJournal"]

_PROGRESS_EVERY_S = 0.5
_HEARTBEAT_EVERY_S = 5.0


class StoreJournal:
    """Reports to the store; raises `Cancelled` or `StaleDriver` from `check_cancelled` when the run must stop."""

    def __init__(self, session: DriverSession, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[str, float | str] = {}
        self._written_at = 0.0
        self._checked_at = 0.0
        self._stop: Exception | None = None

    def phase(self, name: str) -> None:
        """Write what progress is pending, then the phase."""
        self.flush()
        self._session.set_phase(name)

    def progress(self, **numbers: float | str) -> None:
        """Merge numbers into the job's progress, soon."""
        with self._lock:
            self._pending |= numbers
            if self._clock() - self._written_at >= _PROGRESS_EVERY_S:
                self._write()

    def event(self, type_: str, message: str, **data: Any) -> None:
        """Write an event."""
        self._session.event(type_, message, data)

    def flush(self) -> None:
        """Write pending progress now."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._pending:
            self._session.set_progress(dict(self._pending))
            self._pending.clear()
        self._written_at = self._clock()

    def check_cancelled(self) -> None:
        """Look at most every half second whether the job was cancelled or given to another driver."""
        if self._stop:
            raise self._stop
        if self._clock() - self._checked_at >= _PROGRESS_EVERY_S:
            self._checked_at = self._clock()
            if self._session.cancel_requested():
                self._stop = Cancelled("the job was cancelled")
                raise self._stop

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Beat while the context is open; a beat that fails (the driver was replaced) ends the run at its next look."""
        finished = threading.Event()

        def beat() -> None:
            while not finished.wait(_HEARTBEAT_EVERY_S):
                try:
                    self._session.heartbeat()
                except Exception as error:  # noqa: BLE001 - raised in the run's own thread, at its next look
                    self._stop = error
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
