"""The loggers with the real libraries and no network: what they keep, and that a resumed run shows no point twice."""

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tiny import RecordingJournal

from pipelines.spec import SpecError
from pipelines.spec_sections.metrics import LoggerName, MetricsSpec
from pipelines.training import metric_loggers
from pipelines.training.experiment_trackers import MLflowLogger, WandbLogger
from pipelines.training.metric_loggers import JournalMetrics, MetricLogger, TensorBoardLogger, open_loggers

CONFIG = {"name": "job", "training": {"objective": [{"name": "list_kl", "weight": 1.0}]}}
FIRST, AGAIN = range(1, 6), range(4, 9)
"""An attempt that was killed after step 5 with a checkpoint of step 3, and the next one."""


@pytest.fixture(autouse=True)
def a_plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a user's machine says would decide where points go."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def value_at(step: int, attempt: int) -> dict[str, float]:
    """Two numbers; the second tells the attempts apart."""
    return {"loss": 1.0 / step, "health/uniformity": float(-attempt)}


def attempt(logger: MetricLogger, steps: range, number: int) -> None:
    for step in steps:
        logger.log(step, value_at(step, number))
    logger.close()


def tensorboard_points(folder: Path, name: str) -> list[tuple[int, float]]:
    seen = EventAccumulator(str(folder))
    seen.Reload()
    return [(event.step, event.value) for event in seen.Scalars(name)]


def test_tensorboard_shows_a_repeated_step_once_as_the_last_attempt_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(TensorBoardLogger(tmp_path / "run", CONFIG), FIRST, 1)
    # An hour later, for the order of files: their names hold whole seconds and a counter without leading zeros.
    now = time.time()
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: now + 3600))
    attempt(TensorBoardLogger(tmp_path / "run", CONFIG), AGAIN, 2)
    points = tensorboard_points(tmp_path / "run", "health/uniformity")
    assert points == [(1, -1), (2, -1), (3, -1), (4, -2), (5, -2), (6, -2), (7, -2), (8, -2)]


def test_tensorboard_has_a_point_on_disk_when_log_returns(tmp_path: Path) -> None:
    """A driver may be killed at any time, and somebody is looking."""
    logger = TensorBoardLogger(tmp_path / "run")
    logger.log(1, {"loss": 0.5})
    assert tensorboard_points(tmp_path / "run", "loss") == [(1, 0.5)]
    logger.close()


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """History rows of all files, oldest first: LevelDB's log format (records below 32 KiB) of protobuf messages.

    W&B's own process may still write after a run's `finish`, and is through when it has ended, as with any program.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()

    def records(data: bytes) -> Iterator[bytes]:
        place = 7
        while place + 7 <= len(data):
            length, kind = struct.unpack_from("<HB", data, place + 4)
            assert kind == 1, "the record does not fit one block"
            yield data[place + 7 : place + 7 + length]
            place += 7 + length

    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        for raw in records(path.read_bytes()):
            record = Record.FromString(raw)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_wandb_writes_offline_and_has_each_step_once_under_one_run(tmp_path: Path) -> None:
    """Offline files of one run are sent one after the other: a step in two of them would be there twice."""
    attempt(WandbLogger(tmp_path, "job", CONFIG), FIRST, 1)
    attempt(WandbLogger(tmp_path, "job", CONFIG), AGAIN, 2)
    rows = wandb_history(tmp_path)
    assert [(row["_step"], row["health/uniformity"]) for row in rows] == [
        *((step, -1) for step in FIRST),
        *((step, -2) for step in (6, 7, 8)),
    ]
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1


def test_mlflow_keeps_each_step_once_in_one_run_of_its_own_file(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    attempt(MLflowLogger(tmp_path, "job", CONFIG), FIRST, 1)
    attempt(MLflowLogger(tmp_path, "job", CONFIG), AGAIN, 2)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dualdistill")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("job", "FINISHED")
    assert run.data.params["training.objective.0.name"] == "list_kl"
    history = client.get_metric_history(run.info.run_id, "health/uniformity")
    points = sorted((point.step, point.value) for point in history)
    assert points == [*((step, -1) for step in FIRST), *((step, -2) for step in (6, 7, 8))]
    assert not (tmp_path / "mlruns").exists()


def test_neither_tracker_calls_home_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both send usage or errors to their makers by default."""
    import os

    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    for logger in (WandbLogger(tmp_path, "job", {}), MLflowLogger(tmp_path, "job", {})):
        attempt(logger, range(1, 2), 1)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_events_hold_the_numbers_as_data() -> None:
    journal = RecordingJournal()
    JournalMetrics(journal).log(20, {"loss": 0.25, "parameter/info_nce.temperature": 0.05})
    assert journal.named("training.metrics") == [
        {"message": "training step 20, loss 0.25", "step": 20, "loss": 0.25, "parameter/info_nce.temperature": 0.05}
    ]


def test_a_logger_that_fails_is_told_once_and_costs_nothing_else(tmp_path: Path) -> None:
    """A dashboard that is away must not end a training of hours."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where the folder should be", encoding="utf-8")
    failures: list[tuple[str, Exception]] = []
    both: tuple[LoggerName, ...] = ("tensorboard", "mlflow")
    loggers = open_loggers(both, tmp_path / "run", "job", CONFIG, on_failure=lambda *told: failures.append(told))
    for logger in loggers:
        attempt(logger, FIRST, 1)
    assert [name for name, _ in failures] == ["tensorboard"]
    assert (tmp_path / "run" / "mlflow.db").is_file()


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    """A run that resumes after its last step leaves its curves alone."""
    all_three: tuple[LoggerName, ...] = ("tensorboard", "wandb", "mlflow")
    for logger in open_loggers(all_three, tmp_path / "run", "job", CONFIG, on_failure=lambda *_: None):
        logger.close()
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_refused_by_the_field_s_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before any work; and W&B's own folder in the working directory does not pass for its library."""
    (tmp_path / "wandb").mkdir()
    found = importlib.util.spec_from_loader("wandb", None, origin=None)
    monkeypatch.setattr(metric_loggers.importlib.util, "find_spec", {"wandb": found, "mlflow": None}.get)
    with pytest.raises(SpecError) as refused:
        metric_loggers.require_loggers(("tensorboard", "wandb", "mlflow"))
    assert [field for field, _ in refused.value.problems] == [
        "training.metrics.loggers.1",
        "training.metrics.loggers.2",
    ]
    assert "pip install 'dualdistill[wandb]'" in str(refused.value)
    metric_loggers.require_loggers(("tensorboard",))


def test_the_section_refuses_unknown_and_repeated_loggers() -> None:
    assert MetricsSpec() == MetricsSpec(every_steps=10, loggers=("tensorboard",))
    for bad in ({"loggers": ["tensorbord"]}, {"loggers": ["wandb", "wandb"]}, {"every_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MetricsSpec.model_validate(bad)
