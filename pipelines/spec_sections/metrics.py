"""Which of training's numbers are kept beside the job's own files, and how often.

Enters: `training.metrics` of a job. Leaves: a frozen section. Whether a logger's library is installed is no question of
the document but of the machine that trains: `pipelines.training.metric_loggers.require_loggers` asks it there.
"""

from typing import Literal, Self

from pydantic import model_validator

from pipelines.spec_sections.base import Positive, Section

__all__ = ["LoggerName", "MetricsSpec"]

LoggerName = Literal["tensorboard", "wandb", "mlflow"]


class MetricsSpec(Section):
    """The student's training in numbers: docs/operations.md lists them."""

    every_steps: Positive = 10
    """The first and the last step are there in any case."""
    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    """`wandb` and `mlflow` are extras (`pip install dualdistill[wandb]`), and write files on this machine unless its
    environment says where else to. None: `[]`."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"loggers: each once, not {list(self.loggers)}")
        return self
