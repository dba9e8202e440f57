"""Where training's numbers go: a small protocol, what is behind each of `training.metrics.loggers`, and the journal.

Enters: a step and its numbers (`pipelines.training.step_metrics`). Leaves: curves in TensorBoard's files, W&B, MLflow,
or events of the job. A resumed run repeats the steps since its checkpoint, and no logger's curve shows one twice; the
events do, each with the attempt's own time. Loggers are opened with their first step; one that fails is given up with
a word to `on_failure`, and training goes on: a dashboard is not worth a run.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.journal import Journal
from pipelines.spec import SpecError
from pipelines.spec_sections.metrics import LoggerName
from pipelines.training.experiment_trackers import MLflowLogger, WandbLogger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["JournalMetrics", "MetricLogger", "TensorBoardLogger", "open_loggers", "require_loggers"]

_INSTALLED_BY = {"wandb": "pip install 'dualdistill[wandb]'", "mlflow": "pip install 'dualdistill[mlflow]'"}


class MetricLogger(Protocol):
    """Takes numbers step by step, from one thread."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by the names of `METRIC_NAMES`.

        Args:
            step: from 1, counted through all rounds of the job; it grows from call to call.
            values: finite.
        """
        ...

    def close(self) -> None:
        """Everything is written when it returns; nothing is logged afterwards."""
        ...


class TensorBoardLogger:
    """Event files in `folder`: `tensorboard --logdir` shows them. A point is on disk when `log` returns.

    Args:
        folder: of this run alone; made when there is something to write.
        config: plain JSON, shown as text with the run's first step.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._config = dict(config or {})
        self._writer: SummaryWriter | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the points; the first call hides what an earlier attempt wrote from this step on."""
        if self._writer is None:
            self._writer = self._open(step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        first = not any(self._folder.glob("events.out.tfevents.*"))
        writer = SummaryWriter(str(self._folder), purge_step=step)
        if first and self._config:
            writer.add_text("config", f"```\n{json.dumps(self._config, indent=1)}\n```", 0)
        return writer


class JournalMetrics:
    """Each call is an event `training.metrics` of the job, with the step and the numbers as its data."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the journal; what it raises (the job was cancelled, the driver replaced) ends the run as elsewhere."""
        said = f", loss {values['loss']:.4g}" if "loss" in values else ""
        self._journal.event("training.metrics", f"training step {step}{said}", step=step, **values)

    def close(self) -> None:
        """Nothing is held back."""


class _Expendable:
    """A logger whose failure costs its curve and not the run."""

    def __init__(self, name: str, logger: MetricLogger, on_failure: Callable[[str, Exception], None]) -> None:
        self._name = name
        self._logger: MetricLogger | None = logger
        self._on_failure = on_failure

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._logger is not None:
            try:
                self._logger.log(step, values)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's client raises; it is reported
                self._logger = None
                self._on_failure(self._name, error)

    def close(self) -> None:
        if self._logger is not None:
            try:
                self._logger.close()
            except Exception as error:  # noqa: BLE001 - as above
                self._on_failure(self._name, error)


def require_loggers(names: Sequence[LoggerName], *, field: str = "training.metrics.loggers") -> None:
    """Refuse a logger that this machine's Python cannot import; to be called before any work.

    Raises:
        SpecError: naming the field of each missing one, and what installs it.
    """
    missing = [(place, name) for place, name in enumerate(names) if name in _INSTALLED_BY and not _installed(name)]
    if missing:
        raise SpecError(
            [(f"{field}.{place}", f"{name} is not installed here: {_INSTALLED_BY[name]}") for place, name in missing]
        )


def open_loggers(
    names: Sequence[LoggerName],
    folder: Path,
    run_name: str,
    config: Mapping[str, Any],
    *,
    on_failure: Callable[[str, Exception], None],
) -> tuple[MetricLogger, ...]:
    """The named loggers of one run, new or resumed; nothing is written before their first step.

    Args:
        names: of `MetricsSpec.loggers`.
        folder: of this run alone, the same when it is resumed: it remembers which run that is.
        run_name: shown by W&B and MLflow.
        config: the job's spec as plain JSON.
        on_failure: told the logger's name and error, once, when it cannot go on.

    Raises:
        SpecError: a library is not installed.
    """
    require_loggers(names)
    kinds: dict[LoggerName, Callable[[], MetricLogger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder / "tensorboard", config),
        "wandb": lambda: WandbLogger(folder, run_name, config),
        "mlflow": lambda: MLflowLogger(folder, run_name, config),
    }
    return tuple(_Expendable(name, kinds[name](), on_failure) for name in names)


def _installed(name: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None  # a mere folder called `wandb` is found, too: W&B makes one
