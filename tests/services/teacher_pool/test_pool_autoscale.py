"""The policy for pools that follow their backlog: pure, so every rule is a line of numbers."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.store import Demand, Teacher
from services.teacher_pool.autoscale import IDLE_S, target_replicas

NOW = 10_000.0


def teacher(**fields: Any) -> Teacher:
    defaults: dict[str, Any] = {"mode": "auto", "replicas": 1, "min_replicas": 0, "max_replicas": 10, "used_at": NOW}
    return Teacher(name="t", model_dir="d", contract={}, **defaults | fields)


def demand(backlog: int, *, speed: float | None = 100.0, left: float | None = 1000.0, job: str = "j") -> Demand:
    return Demand(
        job_id=job, backlog_tokens=backlog, tokens_per_second=speed, deadline_at=None if left is None else NOW + left
    )


@pytest.mark.parametrize(
    ("backlog", "left", "wanted"),
    [
        (1, 1000, 1),
        (100_000, 1000, 1),
        (100_001, 1000, 2),
        (450_000, 1000, 5),
        (99_000_000, 1000, 10),  # the most there may be
        (10_000, -50, 4),  # too late: what does it in half a minute
        (100_000, None, 1),  # no deadline: an hour
        (720_000, None, 2),
    ],
)
def test_backlog_over_speed_and_time_left(backlog: int, left: float | None, wanted: int) -> None:
    assert target_replicas(teacher(), [demand(backlog, left=left)], now=NOW) == wanted


def test_the_speed_is_measured_before_the_pool_grows() -> None:
    assert target_replicas(teacher(replicas=0), [demand(10**9, speed=None)], now=NOW) == 1
    assert target_replicas(teacher(replicas=3), [demand(10**9, speed=None)], now=NOW) == 3


def test_deadlines_are_served_in_their_order() -> None:
    """The early one alone needs 2; both together need 3 by the late one's deadline; 3 it is."""
    early, late = demand(20_000, left=100, job="a"), demand(280_000, left=1000, job="b")
    assert target_replicas(teacher(), [early], now=NOW) == 2
    assert target_replicas(teacher(), [late], now=NOW) == 3
    assert target_replicas(teacher(), [late, early], now=NOW) == 3
    assert target_replicas(teacher(), [early, demand(480_000, left=1000, job="b")], now=NOW) == 5


def test_a_pool_shrinks_at_leisure_and_grows_at_once() -> None:
    just_scaled = teacher(replicas=8, scaled_at=NOW - 10)
    assert target_replicas(just_scaled, [demand(200_000)], now=NOW) == 8
    assert target_replicas(just_scaled, [demand(900_000)], now=NOW) == 9
    assert target_replicas(teacher(replicas=8, scaled_at=NOW - 61), [demand(200_000)], now=NOW) == 2


def test_an_idle_pool_goes_to_its_least_size_after_a_while() -> None:
    finished = [demand(0)]
    assert target_replicas(teacher(replicas=5, used_at=NOW - IDLE_S + 1), finished, now=NOW) == 5
    assert target_replicas(teacher(replicas=5, used_at=NOW - IDLE_S), finished, now=NOW) == 0
    assert target_replicas(teacher(replicas=5, used_at=NOW - IDLE_S, min_replicas=2), [], now=NOW) == 2


def test_a_sleeping_pool_wakes_when_it_is_used() -> None:
    assert target_replicas(teacher(replicas=0, used_at=NOW - 1), [], now=NOW) == 1
    assert target_replicas(teacher(replicas=0, used_at=None), [], now=NOW) == 0
    assert target_replicas(teacher(replicas=0, used_at=NOW - IDLE_S), [demand(5)], now=NOW) == 1


DEMANDS = st.lists(
    st.builds(
        demand,
        st.integers(0, 10**12),
        speed=st.none() | st.floats(1e-3, 1e9),
        left=st.none() | st.floats(-1e6, 1e6),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(DEMANDS, st.integers(0, 40), st.integers(0, 20), st.integers(0, 20), st.floats(0, 1e5))
def test_bounds_hold_whatever_comes(demands: list[Demand], current: int, least: int, more: int, ago: float) -> None:
    most = max(least + more, 1)
    pool = teacher(replicas=current, min_replicas=least, max_replicas=most, used_at=NOW - ago, scaled_at=NOW - ago)
    target = target_replicas(pool, demands, now=NOW)
    assert least <= target <= most
    if any(item.backlog_tokens for item in demands):
        assert target >= 1, "somebody waits"


@settings(deadline=None)
@given(DEMANDS, st.integers(1, 10**9))
def test_more_to_do_never_means_fewer(demands: list[Demand], more: int) -> None:
    fresh = teacher(replicas=1, scaled_at=None)
    grown = [dataclasses.replace(item, backlog_tokens=item.backlog_tokens + more) for item in demands]
    assert target_replicas(fresh, grown, now=NOW) >= target_replicas(fresh, demands, now=NOW)
