"""How many replicas a pool in `auto` mode should have: a pure function of what is known about it.

Enters: the pool's bounds, the jobs' backlogs in tokens, the measured speed of one replica, deadlines, the time. Leaves
a number of replicas. Backlog over speed is the time that one replica needs; over the time that is left, it is how many
must share it. Serve's own autoscaler counts requests on their way, but a driver keeps few of those on purpose: the
backlog is known to the jobs alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.store.records import Demand, Teacher

__all__ = ["IDLE_S", "target_replicas"]

IDLE_S = 120.0
"""Without any use for so long, a pool falls back to its least size; starting a replica costs about as much."""
_DOWN_EVERY_S = 60.0
"""A pool shrinks at most once in this time: speed and backlog are estimates, and starting again is dear."""
_LEAST_TIME_LEFT_S = 30.0
"""A deadline that is over, or almost, asks for what would do it in this time."""
_FINISH_WITHIN_S = 3600.0
"""For jobs that name no deadline."""


@dataclass(frozen=True)
class _Need:
    tokens: float
    seconds_left: float


def target_replicas(teacher: Teacher, demands: Sequence[Demand], *, now: float) -> int:
    """Replicas that `teacher` should have at the time `now` (Unix seconds)."""
    least, most, current = teacher.min_replicas, teacher.max_replicas, teacher.replicas
    current = min(max(current, least), most)
    backlogs = [demand for demand in demands if demand.backlog_tokens > 0]
    if not backlogs:
        idle = now - (teacher.used_at if teacher.used_at is not None else -math.inf)
        return least if idle >= IDLE_S else max(current, least, 1)
    speeds = [demand.tokens_per_second for demand in demands if demand.tokens_per_second]
    if not speeds:
        return max(current, 1)  # the first calls measure the speed
    needed = _needed(backlogs, sum(speeds) / len(speeds), now)
    target = min(max(needed, least, 1), most)
    if target < current and now - (teacher.scaled_at or 0.0) < _DOWN_EVERY_S:
        return current
    return target


def _needed(backlogs: Sequence[Demand], tokens_per_second: float, now: float) -> int:
    """The most that any deadline asks for, when jobs are served in the order of their deadlines."""
    needs = sorted(
        (
            _Need(demand.backlog_tokens, max((demand.deadline_at or now + _FINISH_WITHIN_S) - now, _LEAST_TIME_LEFT_S))
            for demand in backlogs
        ),
        key=lambda need: need.seconds_left,
    )
    most = tokens = 0.0
    for need in needs:
        tokens += need.tokens
        most = max(most, tokens / (tokens_per_second * need.seconds_left))
    return math.ceil(most - 1e-9)
