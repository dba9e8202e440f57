"""Histograms of numbers whose range nobody knows before the last of them has come.

Enters: numbers, some at a time. Leaves: counts in bins of equal width. The width is a power of two that doubles when
the numbers spread wider than `FINE_BINS` bins; two bins then become one without a number changing place, so the result
depends on the numbers alone and not on how they came.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FINE_BINS", "Histogram", "StreamedHistogram", "histograms"]

FINE_BINS = 4096
_NARROWEST = 2.0**-20


@dataclass(frozen=True)
class Histogram:
    """Bin i counts the numbers from `start + i * width` on, up to the next bin's start."""

    start: float
    width: float
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many numbers there were."""
        return sum(self.counts)


class StreamedHistogram:
    """Counts in at most `FINE_BINS` bins between the smallest and the largest number so far."""

    def __init__(self) -> None:
        self.width = _NARROWEST
        self.first = 0
        """Number of the first bin: it begins at `first * width`."""
        self.counts: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count finite numbers, any shape."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        while self._bins_between(low, high) > FINE_BINS:
            self.double()
        places = np.floor(values / self.width).astype(np.int64).ravel()
        first = min(int(places.min()), self.first) if len(self.counts) else int(places.min())
        end = max(int(places.max()) + 1, self.first + len(self.counts) if len(self.counts) else first)
        grown = np.bincount(places - first, minlength=end - first)
        if len(self.counts):
            grown[self.first - first :][: len(self.counts)] += self.counts
        self.first, self.counts = first, grown

    def double(self) -> None:
        """Make bins twice as wide."""
        places = (self.first + np.arange(len(self.counts))) // 2
        self.width *= 2
        if len(places):
            self.first = int(places[0])
            grown = np.zeros(int(places[-1]) - self.first + 1, dtype=np.int64)
            np.add.at(grown, places - self.first, self.counts)
            self.counts = grown

    def quantile(self, share: float) -> float:
        """The middle of the bin that holds the number at `share` (0 to 1) of all, in order; NaN if there are none."""
        if not len(self.counts):
            return float("nan")
        seen = np.cumsum(self.counts)
        place = int(np.searchsorted(seen, share * (seen[-1] - 1), side="right"))
        return (self.first + place + 0.5) * self.width

    def _bins_between(self, low: float, high: float) -> float:
        first, last = np.floor(low / self.width), np.floor(high / self.width)
        if len(self.counts):
            first, last = min(first, self.first), max(last, self.first + len(self.counts) - 1)
        return float(last - first + 1)


def histograms(streamed: Sequence[StreamedHistogram], *, most_bins: int) -> list[Histogram]:
    """All in the same bins, at most `most_bins` of them, to be read side by side; changes what it is given.

    One without numbers has bins with 0 in them; none has bins if none has numbers.
    """
    filled = [one for one in streamed if len(one.counts)]
    if not filled:
        return [Histogram(0.0, 1.0, ()) for _ in streamed]
    while len({one.width for one in filled}) > 1:
        min(filled, key=lambda one: one.width).double()
    while _end(filled) - min(one.first for one in filled) > most_bins:
        for one in filled:
            one.double()
    first, width = min(one.first for one in filled), filled[0].width
    made = []
    for one in streamed:
        counts = np.zeros(_end(filled) - first, dtype=np.int64)
        if len(one.counts):
            counts[one.first - first :][: len(one.counts)] = one.counts
        made.append(Histogram(first * width, width, tuple(counts.tolist())))
    return made


def _end(filled: Sequence[StreamedHistogram]) -> int:
    return max(one.first + len(one.counts) for one in filled)
