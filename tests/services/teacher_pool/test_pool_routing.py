"""Which replica is next. The router inside real Serve is in tests/system and in benchmarks/pool_scaling.py."""

from collections import Counter

from services.teacher_pool.routing import least_busy

REPLICAS = [f"replica-{number}" for number in range(16)]


def choose(calls: Counter[str], queues: dict[str, int] | None = None) -> str:
    return least_busy(REPLICAS, key=str, calls=calls, queue=(queues or {}).get)[0]


def test_two_calls_a_replica_are_two_for_each() -> None:
    """The default, two at random, would leave some without and give others four."""
    calls: Counter[str] = Counter()
    for _ in range(2 * len(REPLICAS)):
        calls[choose(calls)] += 1
    assert calls == dict.fromkeys(REPLICAS, 2)


def test_who_finishes_is_next() -> None:
    calls = Counter(dict.fromkeys(REPLICAS, 2))
    calls["replica-7"] -= 1
    assert choose(calls) == "replica-7"


def test_what_others_have_sent_breaks_ties_only() -> None:
    calls = Counter({"replica-0": 1})
    queues = dict.fromkeys(REPLICAS[1:], 9) | {"replica-3": 4, "replica-0": 0}
    assert choose(calls, queues) == "replica-3"


def test_equals_are_taken_equally_often() -> None:
    """Many drivers and proxies begin with nothing on their way: they must not all begin with the same replica."""
    taken = Counter(choose(Counter()) for _ in range(3200))
    assert set(taken) == set(REPLICAS)
    assert max(taken.values()) < 300


def test_a_replica_that_refuses_has_two_stand_ins() -> None:
    assert len(set(least_busy(REPLICAS, key=str, calls={}, queue=lambda _: None))) == 3
    assert least_busy(REPLICAS[:1], key=str, calls={}, queue=lambda _: None) == REPLICAS[:1]
    assert least_busy([], key=str, calls={}, queue=lambda _: None) == []
