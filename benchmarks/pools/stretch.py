"""A stretch of time in a driver's log, as rates. The rows are those of `driver.py`.

A rate is counted from the first answered call in the stretch to the last one: what came with the first was made before,
so it does not count, and neither the beginning, nor the tail, nor the place of the stretch between two answers has a
part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "Stretch"]

# When a call was answered, its pairs, its tokens, CPU seconds of the driver until then.
Row = tuple[float, int, int, float]


@dataclass(frozen=True)
class Stretch:
    """What was answered, and what it took."""

    seconds: float
    pairs: int
    tokens: int
    calls: int
    cpu_s: float

    @classmethod
    def of(cls, log: Sequence[Row], start: float, end: float) -> "Stretch":
        """The stretch from `start` to `end`.

        Raises:
            SystemExit: fewer than three answers fell into it.
        """
        rows = sorted(row for row in log if start <= row[0] <= end)
        if len(rows) < 3:
            raise SystemExit(f"{len(rows)} answers in {end - start:.0f} s: nothing can be said of a rate")
        first, last = rows[0], rows[-1]
        return cls(
            last[0] - first[0],
            sum(row[1] for row in rows[1:]),
            sum(row[2] for row in rows[1:]),
            len(rows) - 1,
            last[3] - first[3],
        )

    def __add__(self, other: "Stretch") -> "Stretch":
        """Both, one after the other."""
        return Stretch(
            self.seconds + other.seconds,
            self.pairs + other.pairs,
            self.tokens + other.tokens,
            self.calls + other.calls,
            self.cpu_s + other.cpu_s,
        )

    @property
    def pairs_per_s(self) -> float:
        """Pairs answered in a second."""
        return self.pairs / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Their tokens."""
        return self.tokens / self.seconds

    @property
    def per_call(self) -> dict[str, float]:
        """What a call held, and what it took of the driver."""
        return {
            "calls/s": self.calls / self.seconds,
            "pairs a call": self.pairs / self.calls,
            "tokens a call": self.tokens / self.calls,
            "driver CPU, ms a call": 1e3 * self.cpu_s / self.calls,
        }
