"""A run's numbers, told now and then to whoever keeps them.

Enters: every step's report and what its forward pass saw. Leaves: one dictionary (`step_metrics`) every so many steps,
to each logger. Rates and the share of waiting are over all steps since the last telling; the health of embeddings is
that of the step's own batch, for it costs a singular value decomposition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.journal import Journal
from pipelines.objective_terms import Term
from pipelines.spec import DistillationSpec
from pipelines.training.embedding_health import embedding_health
from pipelines.training.loop import StepReport
from pipelines.training.metric_loggers import MetricLogger, open_loggers
from pipelines.training.step_metrics import is_due, step_metrics
from pipelines.training.student_step import StepFacts

__all__ = ["RunMetrics", "run_loggers"]


@dataclass
class _Window:
    seconds: float = 0.0
    data_wait: float = 0.0
    queries: int = 0
    texts: int = 0
    tokens: int = 0


class RunMetrics:
    """Of one round.

    Args:
        loggers: who is told.
        objective: the job's terms.
        every_steps: how often.
        steps_before: of earlier rounds; a logger's steps go on from there.
    """

    def __init__(
        self, loggers: Sequence[MetricLogger], objective: Sequence[Term], *, every_steps: int, steps_before: int
    ) -> None:
        self._loggers = tuple(loggers)
        self._objective = tuple(objective)
        self._every_steps = every_steps
        self._steps_before = steps_before
        self._window = _Window()

    def take(self, report: StepReport, facts: StepFacts) -> None:
        """One step; tells the loggers when it is due."""
        window = self._window
        window.seconds += report.seconds
        window.data_wait += report.data_wait_s
        window.queries += len(facts.batch.query_ids)
        window.texts += len(facts.texts)
        window.tokens += int(facts.texts.tokens.lengths.sum())
        if not is_due(report.step, total_steps=report.total_steps, every_steps=self._every_steps):
            return
        batch = facts.batch
        document = batch.columns.gather(1, batch.positive.clamp(min=0).unsqueeze(1)).squeeze(1)
        positive = torch.where(batch.positive >= 0, document, -1).to(facts.queries.device)
        values = step_metrics(
            losses=report.losses,
            objective=self._objective,
            grad_norm=report.grad_norm,
            learning_rate=report.learning_rate,
            seconds=window.seconds,
            data_wait=window.data_wait,
            queries=window.queries,
            texts=window.texts,
            tokens=window.tokens,
            health=embedding_health(facts.queries, facts.documents, positive),
        )
        for logger in self._loggers:
            logger.log(self._steps_before + report.step, values)
        self._window = _Window()

    def close(self) -> None:
        """Everything is written when it returns; sinks of the job stay open."""
        for logger in self._loggers:
            logger.close()


def run_loggers(spec: DistillationSpec, folder: Path, job_id: str, journal: Journal) -> tuple[MetricLogger, ...]:
    """Those that the job names, below `folder`; one that fails is told to the journal and given up."""

    def on_failure(name: str, error: Exception) -> None:
        message = f"{name} takes no more numbers of this run: {type(error).__name__}: {error}"
        journal.event("training.logger_failed", message, logger=name)

    config = spec.model_dump(mode="json")
    return open_loggers(spec.training.metrics.loggers, folder, job_id, config, on_failure=on_failure)
