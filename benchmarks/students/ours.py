"""Our trainer on the benchmark's lists: a round's training as a job runs it, from the table to the optimizer.

Enters: settings, a `Meter`. Leaves: a function that trains for one turn. Everything is in the time that is in a job's:
following the table, choosing candidates, tokenising, losses, events, the learning curve, the numbers told now and then
(to no logger: the peer logs nothing either).
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from students.lists import JOB, MARGIN_SCALE, WIDTH, quickstart
from students.meter import Meter

from pipelines.ranked.table import RankedLists
from pipelines.spec import DistillationSpec
from pipelines.student.model import load_student
from pipelines.training.student_stream import TrainingInputs
from pipelines.training.student_training import new_step, train_student

__all__ = ["Silence", "ours"]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "margin_mse": {"name": "margin_mse", "scale": MARGIN_SCALE},
    "distill_kl": {
        "name": "list_kl",
        "temperature": 0.05,
        "teacher_temperature": 1.0,
        "scale_by_temperature_squared": True,
    },
}


class _EnoughError(Exception):
    """The turn is over, with some lists left: neither trainer's last batches are made before the clock starts."""


class Silence:
    """A journal that nobody reads."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def progress(self, **numbers: float | str) -> None:
        """Nothing."""

    def event(self, type_: str, message: str, **data: Any) -> None:
        """Nothing."""

    def check_cancelled(self) -> None:
        """Never."""


def ours(settings: dict[str, Any], meter: Meter, device: torch.device) -> Callable[[], None]:
    """`train_student` with the spec of such a job."""
    spec = _spec(settings)
    student = load_student(Path(settings["model"]), spec.student, dropout=settings["dropout"], device=device)
    meter.watch_encoder(student.backbone)
    dataset, lists = quickstart(), RankedLists.existing(settings["table"])

    def watch() -> None:
        if meter.step():
            raise _EnoughError

    def turn() -> None:
        step = new_step(student, spec, previous=None, queries=())
        step.register_forward_hook(lambda _module, _inputs, losses: meter.loss(losses["loss"]))
        with tempfile.TemporaryDirectory() as work:
            inputs = TrainingInputs(
                job_id=JOB,
                spec=spec,
                dataset=dataset,
                lists=lists,
                work=Path(work),
                number=0,
                num_rows=settings["num_lists"],
                dev=None,
                journal=Silence(),
                wait=_nothing_is_missing,
                watch=watch,
                loggers=(),
                steps_before=0,
            )
            try:
                train_student(inputs, step)
            except _EnoughError:
                return
        raise SystemExit(f"the lists ended before step {meter.total}")

    return turn


def _spec(settings: dict[str, Any]) -> DistillationSpec:
    model = {"id": settings["model"]}
    more = {key: settings[key] for key in ("dropout", "dtype", "tokens_per_micro_batch", "gradient_cache")}
    data = {
        "name": "benchmark",
        "dataset": {"path": "examples/quickstart/data"},
        "teacher": {"model": model},
        "student": {"model": model, "max_length": settings["max_length"]},
        "candidates": {"max_candidates": WIDTH, "queries_per_chunk": settings["queries_per_chunk"]},
        "training": {
            "objective": [OBJECTIVES[settings["loss"]]],
            "queries_per_step": settings["queries_per_step"],
            "candidates_per_query": WIDTH,
            "checkpoint_every_steps": 1_000_000,
            **more,
        },
    }
    return DistillationSpec.model_validate_json(json.dumps(data))


def _nothing_is_missing() -> None:
    raise SystemExit("a chunk is missing, though all were committed")
