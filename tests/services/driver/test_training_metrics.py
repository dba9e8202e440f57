"""RayMetrics: each number has its gauge, Ray takes them without a cluster, and the documents name them all."""

from pathlib import Path

import pytest
from ray.util.metrics import Gauge

from pipelines.training.step_metrics import METRIC_NAMES
from services.driver.training_metrics import GAUGES, RayMetrics, Reading, readings
from services.store import DriverSession, Store

VALUES = {
    "loss": 1.5,
    "loss/list_kl": 0.5,
    "parameter/info_nce.temperature": 0.04,
    "data_wait_share": 0.25,
    "health/effective_rank": 17.0,
}
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def test_each_number_is_a_gauge_with_the_tags_that_tell_it_apart() -> None:
    assert list(readings(20, VALUES)) == [
        Reading("dualdistill_training_step", 20, {}),
        Reading("dualdistill_training_loss", 1.5, {}),
        Reading("dualdistill_training_term_loss", 0.5, {"term": "list_kl"}),
        Reading("dualdistill_training_parameter", 0.04, {"term": "info_nce", "parameter": "temperature"}),
        Reading("dualdistill_training_data_wait_share", 0.25, {}),
        Reading("dualdistill_training_health_effective_rank", 17.0, {}),
    ]


def test_every_documented_number_has_a_gauge_and_every_gauge_has_the_tags_it_is_set_with() -> None:
    """Ray refuses a tag that the gauge was not made with, and only when it is set."""
    every = {name.replace("<term>", "list_kl").replace("<name>", "bias"): 1.0 for name in METRIC_NAMES}
    found = {reading.gauge: ("job", *reading.tags) for reading in readings(1, every)}
    assert found == {name: tags for name, (_, tags) in GAUGES.items()}


def test_ray_takes_them_before_it_is_started() -> None:
    """The real gauges: names and tags that Ray would refuse fail here."""
    metrics = RayMetrics("job-1")
    metrics.log(1, VALUES)
    metrics.log(11, VALUES)
    metrics.close()


def test_what_is_measured_less_often_is_set_with_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets a gauge that is not set again."""
    numbers: list[tuple[float, dict[str, str]]] = []
    metrics = RayMetrics("job-1")
    metrics.log(1, VALUES)
    monkeypatch.setattr(Gauge, "set", lambda self, value, tags: numbers.append((value, tags)))
    metrics.log(11, {"loss": 1.25, "loss/list_kl": 0.75})
    assert numbers == [
        (11, {"job": "job-1"}),
        (1.25, {"job": "job-1"}),
        (0.75, {"job": "job-1", "term": "list_kl"}),
        (0.04, {"job": "job-1", "term": "info_nce", "parameter": "temperature"}),
        (0.25, {"job": "job-1"}),
        (17.0, {"job": "job-1"}),
    ]


def test_the_gauges_are_in_the_documents() -> None:
    page = OPERATIONS.read_text(encoding="utf-8")
    assert [name for name in GAUGES if f"`{name.removeprefix('dualdistill_')}`" not in page] == []


def test_the_store_takes_the_numbers_as_an_event_s_data(session: DriverSession, store: Store, job_id: str) -> None:
    """Names with slashes and dots, through the driver's own journal to the row that the gateway shows."""
    from pipelines.training.metric_loggers import JournalMetrics
    from services.driver.journal import StoreJournal

    JournalMetrics(StoreJournal(session)).log(20, VALUES)
    (event,) = [event for event in store.list_events(job_id, after=0, limit=100) if event.type == "training.metrics"]
    assert event.data == {"step": 20, **VALUES}
