"""Calls: requests of any size, cut and joined into pieces that are worth a trip to a replica.

Enters: score requests (a chunk each), pulled lazily. Leaves: calls of 64 to 512 pairs and about as many tokens each,
so that no replica is kept busy for long by one and no trip is made for a few; small chunks share a call, large ones are
cut. Which pairs share a call depends on the requests alone, so one replica or ten give the same bits.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipelines.teacher.scorer import ScoreRequest
from pipelines.tokens import TokenPairs

__all__ = ["LEAST_PAIRS", "MOST_PAIRS", "MOST_TOKENS", "Call", "Part", "pack_calls"]

LEAST_PAIRS = 64
MOST_PAIRS = 512
MOST_TOKENS = 32768

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """Some pairs of one request, by their rows in it."""

    request: ScoreRequest
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def num_tokens(self) -> int:
        """Of these pairs."""
        return int(self.request.pairs.lengths[self.rows].sum())


@dataclass(frozen=True, eq=False)
class Call:
    """Parts of one or more requests, scored together in the order of `parts`."""

    parts: tuple[Part, ...]

    def pairs(self) -> TokenPairs:
        """What is sent."""
        return TokenPairs.joined([part.request.pairs.take(part.rows) for part in self.parts])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def num_tokens(self) -> int:
        """Of all pairs, without what a template adds and `max_length` cuts."""
        return sum(part.num_tokens for part in self.parts)


def pack_calls(requests: Iterable[ScoreRequest]) -> Iterator[Call]:
    """All pairs of all requests, once each and in order; a request without pairs gets a call without pairs."""
    waiting: list[Part] = []
    for request in requests:
        if not len(request.pairs):
            yield Call((Part(request, np.empty(0, dtype=np.int64)),))
            continue
        for rows in _cut(request.pairs):
            if waiting and not _fits(waiting, rows):
                yield Call(tuple(waiting))
                waiting = []
            waiting.append(Part(request, rows))
            if _is_full(waiting):
                yield Call(tuple(waiting))
                waiting = []
    if waiting:
        yield Call(tuple(waiting))


def _cut(pairs: TokenPairs) -> list[Rows]:
    """Contiguous rows of about equal tokens: as few pieces as the bounds allow, none smaller than `LEAST_PAIRS`."""
    tokens = np.cumsum(pairs.lengths)
    pieces = max(-(-len(pairs) // MOST_PAIRS), -(-int(tokens[-1]) // MOST_TOKENS))
    pieces = max(1, min(pieces, len(pairs) // LEAST_PAIRS))
    cuts = 1 + np.searchsorted(tokens, tokens[-1] * np.arange(1, pieces) / pieces)
    found = [rows for rows in np.split(np.arange(len(pairs)), cuts) if len(rows)]
    return [part for rows in found for part in np.array_split(rows, -(-len(rows) // MOST_PAIRS))]


def _fits(parts: list[Part], rows: Rows) -> bool:
    return sum(map(len, parts)) + len(rows) <= MOST_PAIRS


def _is_full(parts: list[Part]) -> bool:
    """Enough for a trip: many pairs, or enough pairs and many tokens."""
    if sum(map(len, parts)) < LEAST_PAIRS:
        return False
    tokens = sum(part.num_tokens for part in parts)
    return tokens >= MOST_TOKENS // 2 or sum(map(len, parts)) >= MOST_PAIRS // 2
