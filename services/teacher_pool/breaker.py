"""CircuitBreaker: when every call fails, stop calling for a while, then let one try.

Enters: the outcomes of calls from many threads. Leaves: permission for the next one, at once or later. Without it a
pool that is away would use up the retries of every call, and one that comes back would be met by all of them at once.
"""

import random
import threading
import time
from collections.abc import Callable

from services.errors import TeacherPoolError

__all__ = ["CircuitBreaker"]

_THRESHOLD = 8
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_GIVE_UP_S = 900.0


class CircuitBreaker:
    """Closed while calls succeed; open after `threshold` failures in a row, with pauses that double.

    Args:
        threshold: failures in a row.
        give_up_s: seconds without any success after which a caller that asks gets an error.
        clock: seconds, monotonic.
        pause: waits for some seconds; returns early when nothing should be waited for any more.
    """

    def __init__(
        self,
        *,
        threshold: int = _THRESHOLD,
        give_up_s: float = _GIVE_UP_S,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._threshold = threshold
        self._give_up_s = give_up_s
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._failures = 0
        self._failing_since = 0.0
        self._open_until = 0.0
        self._last: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls wait at the moment."""
        return self._failures >= self._threshold

    def wait(self) -> None:
        """Returns when a call may be made.

        Raises:
            TeacherPoolError: nothing has succeeded for `give_up_s` seconds.
        """
        while True:
            with self._lock:
                if self._failures < self._threshold:
                    return
                now = self._clock()
                if now - self._failing_since >= self._give_up_s:
                    raise TeacherPoolError(
                        f"the teacher pool has not answered for {now - self._failing_since:.0f} s, "
                        f"{self._failures} calls in a row failed; the last one: {self._last}"
                    ) from self._last
                if now >= self._open_until:
                    self._open_until = now + self._length()  # this caller tries, all others wait once more
                    return
                left = self._open_until - now
            self._pause(min(left, 1.0))

    def succeeded(self) -> None:
        """A call was answered: close."""
        with self._lock:
            self._failures = 0
            self._last = None

    def failed(self, error: BaseException) -> None:
        """A call was not answered."""
        with self._lock:
            self._failures += 1
            self._last = error
            if self._failures == 1:
                self._failing_since = self._clock()
            if self._failures >= self._threshold:
                self._open_until = self._clock() + self._length()

    def _length(self) -> float:
        doubled = _FIRST_PAUSE_S * (1 << min(self._failures - self._threshold, 8))
        return min(doubled, _LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, hides nothing
