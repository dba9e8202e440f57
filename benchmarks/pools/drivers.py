"""Drivers on a cluster, and what they moved in a stretch of time.

Enters: a cluster, texts, a folder for requests. Leaves: driver processes that are connected, and `Stretch`es of their
work over the same seconds.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pools.child import Child
from pools.cluster import Cluster
from pools.pairs import Texts, save_requests
from pools.stretch import Stretch

from services.store import Teacher

__all__ = ["Drivers", "measured", "rounded"]


class Drivers:
    """Starts them; keeps their requests as files below `work`."""

    def __init__(self, cluster: Cluster, texts: Texts, work: Path) -> None:
        self.cluster = cluster
        self._texts = texts
        self._work = work

    def requests(self, name: str, *, count: int = 64, **shape: Any) -> Path:
        """`count` requests of one shape (see `Texts.request`), made once."""
        path = self._work / f"{name.replace(' ', '-')}.npz"
        if not path.is_file():
            rng = np.random.default_rng(0)
            save_requests(path, [self._texts.request(rng, **shape) for _ in range(count)])
        return path

    def start(self, teacher: Teacher, requests: Path, *, job: str, sleeping: bool = True, **more: Any) -> Child:
        """One that is connected to the pool of `teacher`.

        Args:
            teacher: deployed.
            requests: of `requests`.
            job: its id.
            sleeping: the replicas sleep, and their logits are checked as theirs.
            more: `scores`, `larger_calls`: see `driver.py`.
        """
        common = {"teacher": teacher.name, "contract": teacher.contract, "requests": str(requests)}
        child = Child("driver", common | {"job": job, "sleeping": sleeping} | more, self.cluster.env)
        child.ask("ready")
        return child


def measured(children: Sequence[Child], *, settle: float, seconds: float) -> tuple[list[Stretch], float]:
    """The same `seconds` of every driver's work, after `settle` seconds, and how busy the machine was (0 to 1)."""
    time.sleep(settle)
    start, before = time.monotonic(), _cpu_ticks()
    time.sleep(seconds)
    end, after = time.monotonic(), _cpu_ticks()
    idle, whole = (later - sooner for later, sooner in zip(after, before, strict=True))
    return [Stretch.of(child.ask("log"), start, end) for child in children], 1 - idle / whole


def rounded(value: Any) -> Any:
    """Numbers with four digits, however deep."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cpu_ticks() -> tuple[int, int]:
    """(idle, all) of the machine's cores."""
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
