"""Fairness: two jobs share a pool, one with short calls and one with long ones; how much does each get?

Enters: a deployed teacher. Leaves: the tokens per second of each job over the same time, in which both always had work.
Turns are given by tokens, so the shares should be equal, however unequal the calls.
"""

from typing import Any

from pools.drivers import Drivers, measured

from services.store import Teacher

__all__ = ["fair_shares"]

_SHAPES = {
    # Calls of 256 pairs and some 10,000 tokens; calls of some 190 pairs and 31,000 tokens.
    "short": {"lists": 16, "per_list": 16, "between": (0, 40)},
    "long": {"lists": 16, "per_list": 24, "longest": 200},
}


def fair_shares(
    drivers: Drivers, teacher: Teacher, *, seconds: float, settle: float, sleeping: bool
) -> tuple[dict[str, Any], float]:
    """Figures of both jobs, and the smaller share over the larger one."""
    children = [
        drivers.start(teacher, drivers.requests(f"fair {name}", **shape), job=f"job-{name}", sleeping=sleeping)
        for name, shape in _SHAPES.items()
    ]
    for child in children:
        child.send("start")
    for child in children:
        child.receive()
    stretches, _ = measured(children, settle=settle, seconds=seconds)
    for child in children:  # at once: the one that stops first would leave the pool to the other
        child.send("stop")
    for child in children:
        child.receive()
        child.close()
    rates = [stretch.tokens_per_s for stretch in stretches]
    figures = {
        f"job of {name} calls": {"tokens/s": rate, **stretch.per_call}
        for name, rate, stretch in zip(_SHAPES, rates, stretches, strict=True)
    }
    return figures, min(rates) / max(rates)
