"""Training's numbers as Ray exports them, to the dashboard and to Prometheus (there as `ray_dualdistill_training_...`).

Enters: a step and its numbers, by the names of `pipelines.training.step_metrics`. Leaves: gauges with the tag `job`,
those of a term with `term`, too; docs/operations.md says what they mean. A `MetricLogger`: the science needs no Ray.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ray.util.metrics import Gauge

from pipelines.training.step_metrics import METRIC_NAMES

__all__ = ["GAUGES", "RayMetrics", "Reading", "readings"]

_PREFIX = "dualdistill_training_"
_STEP = f"{_PREFIX}step"
_TAGS_OF = {"loss/<term>": ("term",), "parameter/<term>.<name>": ("term", "parameter")}
_SHORT = {"loss/<term>": "term_loss", "parameter/<term>.<name>": "parameter"}


def _gauge_name(name: str) -> str:
    return _PREFIX + _SHORT.get(name, name.replace("/", "_"))


GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    _STEP: ("Optimizer steps done, through all rounds.", ("job",)),
    **{_gauge_name(name): (meaning, ("job", *_TAGS_OF.get(name, ()))) for name, meaning in METRIC_NAMES.items()},
}
"""Each gauge's meaning and tags."""


@dataclass(frozen=True)
class Reading:
    """What one gauge is set to."""

    gauge: str
    value: float
    tags: Mapping[str, str]


class RayMetrics:
    """A job's training as gauges; they are made with the first step, when Ray is there."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._gauges: dict[str, Gauge] = {}
        self._latest: dict[str, float] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Set the gauges, those of numbers that are measured less often to what they were.

        Ray exports a gauge once for each time that it is set.
        """
        if not self._gauges:
            self._gauges = {name: Gauge(name, meaning, tags) for name, (meaning, tags) in GAUGES.items()}
        self._latest |= values
        for reading in readings(step, self._latest):
            self._gauges[reading.gauge].set(reading.value, {"job": self._job, **reading.tags})

    def close(self) -> None:
        """Nothing is held back."""


def readings(step: int, values: Mapping[str, float]) -> Iterator[Reading]:
    """The gauges that say so, without the tag `job`."""
    yield Reading(_STEP, step, {})
    for name, value in values.items():
        kind, _, rest = name.partition("/")
        if kind == "loss" and rest:
            yield Reading(_gauge_name("loss/<term>"), value, {"term": rest})
        elif kind == "parameter":
            term, _, parameter = rest.partition(".")
            yield Reading(_gauge_name("parameter/<term>.<name>"), value, {"term": term, "parameter": parameter})
        else:
            yield Reading(_gauge_name(name), value, {})
