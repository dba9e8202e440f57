r"""The words a job's status can be, and which may follow which.

Enters: the status a job has and the one somebody wants. Leaves: yes or no. It is here, away from any
database, so that one table is what the store enforces, what the tests walk over, and what the documentation
shows.

    validating_files -> queued -> running -> succeeded
                          ^ |       | | \-> failed
                          | |       | \-> cancelling -> cancelled
                          | \-> cancelled, failed
                          \-- running, when its driver was lost

A job that is `cancelling` can only become `cancelled`: whoever was told that a cancel was accepted is never
answered with another end afterwards, whatever the driver was doing at that moment.
"""

from types import MappingProxyType
from typing import Final

__all__ = ["ACTIVE", "STATUSES", "TERMINAL", "may_follow"]

_NEXT: Final = MappingProxyType(
    {
        "validating_files": frozenset({"queued", "failed", "cancelled"}),
        "queued": frozenset({"running", "failed", "cancelled"}),
        "running": frozenset({"queued", "pausing", "cancelling", "succeeded", "failed"}),
        "pausing": frozenset({"paused", "cancelling", "failed"}),
        "paused": frozenset({"queued", "cancelled", "failed"}),
        "cancelling": frozenset({"cancelled"}),
        "succeeded": frozenset(),
        "failed": frozenset(),
        "cancelled": frozenset(),
    }
)

STATUSES: Final = tuple(_NEXT)
"""Every status word, in the order a job meets them."""

TERMINAL: Final = frozenset(status for status, following in _NEXT.items() if not following)
"""Nothing follows these."""

ACTIVE: Final = frozenset({"running", "cancelling"})
"""A driver may be alive, and its writes are accepted."""


def may_follow(current: str, wanted: str) -> bool:
    """Whether a job in status `current` may become `wanted`; staying where it is is not a transition."""
    return wanted in _NEXT[current]
