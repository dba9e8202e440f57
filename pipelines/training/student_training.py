"""One round's training of the student, wherever it runs: in the job's own process or in each of several workers.

Enters: the round's lists, arriving or there, and a `StudentStep`. Leaves: the step trained, its checkpoints, a point of
the learning curve per step, events. It ends like one that was never interrupted, however often it was.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

from torch import Tensor

from pipelines.devices import seed_everything
from pipelines.errors import DataError
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import DistillationSpec, FilterSpec
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch
from pipelines.training.checkpoints import Checkpoints, newest_step
from pipelines.training.dev_set import dev_ndcg
from pipelines.training.encoding import StepTexts
from pipelines.training.held_out import HeldOutCheck
from pipelines.training.learning_rate_finder import find_learning_rate
from pipelines.training.loop import StepReport, train
from pipelines.training.plan import plan_training
from pipelines.training.run_metrics import RunMetrics
from pipelines.training.settings import encoding_settings, loop_settings, student_checkpoints
from pipelines.training.snapshots import save_step
from pipelines.training.student_step import StudentStep
from pipelines.training.student_stream import Prepared, TrainingInputs, prepared_batches
from pipelines.training.workers import ALONE, Workers
from pipelines.whole_files import write_json

__all__ = ["new_step", "train_student"]

_DEV_EVERY_STEPS = 100


def new_step(
    student: DualEncoder,
    spec: DistillationSpec,
    *,
    previous: DualEncoder | None,
    queries: Sequence[str],
    workers: Workers = ALONE,
) -> StudentStep:
    """The step of a job's spec around `student`; `queries` are all that the job may train on."""
    training = spec.training
    return StudentStep(
        student,
        training.objective,
        encoding=encoding_settings(training, device_type=student.device.type),
        previous=previous,
        momentum=training.momentum,
        ema_decay=training.ema_decay,
        remembered=queries if training.pacing or spec.dataset.unlabelled.queries_per_round else (),
        workers=workers,
    )


def train_student(inputs: TrainingInputs, step: StudentStep) -> None:
    """Train `step` in place over all epochs of the round.

    Raises:
        DataError: no list has anything to learn from.
        ObjectiveError: a loss or gradient is not finite.
    """
    spec, number = inputs.spec, inputs.number
    training = spec.training
    seed_everything(spec.seed + number)
    settings = loop_settings(spec, inputs.num_rows, round_number=number, steps_before=inputs.steps_before)
    folder = inputs.work / student_checkpoints(spec, number)
    if training.find_learning_rate:
        settings = replace(settings, learning_rate=_found_rate(inputs, step))
    metrics = RunMetrics(
        inputs.loggers,
        training.objective,
        every_steps=training.metrics.every_steps,
        steps_before=inputs.steps_before - settings.begins_at,
    )
    positives: Counter[str] = Counter()
    planned = False

    def losses_of(prepared: Prepared) -> dict[str, Tensor]:
        nonlocal planned
        batch, texts = prepared
        if not planned and inputs.workers.leads:
            left = settings.last_step - max(newest_step(folder), settings.begins_at)
            _say_plan(inputs, step, batch, texts, steps=left)
        planned = True
        positives.update(queries=len(batch.positive), with_positive=int((batch.positive >= 0).sum()))
        losses: dict[str, Tensor] = step(batch, texts)
        return losses

    def on_step(report: StepReport) -> None:
        early = inputs.early
        due = early is not None and inputs.workers.leads and report.step == early.after_step
        if early and due and not early.path.is_file():  # a run that was resumed may be mining from it already
            save_step(step, early.path)
        inputs.watch()
        if inputs.workers.leads and step.facts:
            _report(inputs, report)
            metrics.take(report, step.facts)

    checkpoints = Checkpoints(
        folder,
        run_fingerprint=f"{inputs.job_id}/{folder.name}/{_settings_hash(spec)}",
        keep=training.keep_checkpoints,
        facts=lambda: {"table_version": inputs.lists.version, "workers": inputs.workers.world},
    )
    point = train(
        step,
        losses_of,
        lambda start: prepared_batches(inputs, step, start),
        settings,
        on_step=on_step,
        checkpoints=checkpoints,
        after_update=step.follow_weights,
        held_out=_held_out(inputs, step),
        workers=inputs.workers,
    )
    metrics.close()
    _require_something_learned(inputs, steps=point.step - settings.begins_at, positives=positives)
    if inputs.workers.leads:
        best = f"; dev nDCG@10 was best after step {point.best.step}: {point.best.value:.4f}" if point.best else ""
        message = f"round {number}: the student is trained; {positives['with_positive']} lists had a positive{best}"
        inputs.journal.event("training.finished", message, round=number, steps=point.step, **positives)


def _found_rate(inputs: TrainingInputs, step: StudentStep) -> float:
    """What a range test on the round's first lists suggests; kept, so that a resumed run uses the same."""
    path = inputs.work / f"learning-rate-{inputs.number}.json"
    if not path.is_file():
        stream = prepared_batches(inputs, step, StreamPosition())
        curve = find_learning_rate(step, lambda prepared: step(*prepared), (prepared for prepared, _ in stream))
        write_json(path, asdict(curve))
        message = f"round {inputs.number}: the range test suggests a learning rate of {curve.suggestion:.2g}"
        inputs.journal.event("training.learning_rate_found", message, **asdict(curve))
    return float(json.loads(path.read_text(encoding="utf-8"))["suggestion"])


def _held_out(inputs: TrainingInputs, step: StudentStep) -> HeldOutCheck | None:
    settings, dev = inputs.spec.evaluation.dev, inputs.dev
    if settings is None or dev is None or inputs.spec.rounds.mode == "adversarial":  # that measures whole rounds
        return None
    return HeldOutCheck(
        measure=lambda: dev_ndcg(step.outcome, inputs.dataset, dev),
        every_steps=settings.every_steps or _DEV_EVERY_STEPS,
        patience=settings.patience,
    )


def _say_plan(inputs: TrainingInputs, step: StudentStep, batch: ListBatch, texts: StepTexts, *, steps: int) -> None:
    plan = plan_training(
        step.student,
        texts,
        step.encoding,
        queries=len(batch.query_ids),
        steps=steps,
        world=inputs.workers.world,
    )
    inputs.journal.event(
        "training.planned", f"round {inputs.number}: {plan.sentence()}", round=inputs.number, **asdict(plan)
    )


def _report(inputs: TrainingInputs, report: StepReport) -> None:
    number, journal = inputs.number, inputs.journal
    if report.step == 1:
        journal.event("training.started", f"round {number}: the first step is done", round=number)
    losses = {name if name == "loss" or "." in name else f"loss.{name}": value for name, value in report.losses.items()}
    measured = {} if report.held_out is None else {"dev_ndcg@10": report.held_out}
    with (inputs.work / "learning_curve.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"round": number, "step": report.step, **losses, **measured}) + "\n")
    if report.held_out is not None:
        message = f"round {number}, step {report.step}: dev nDCG@10 {report.held_out:.4f}"
        journal.event("training.measured", message, round=number, step=report.step, **measured)
    journal.progress(round=number, step=report.step, total_steps=report.total_steps, loss=report.losses["loss"])


def _require_something_learned(inputs: TrainingInputs, *, steps: int, positives: Counter[str]) -> None:
    number, training, unlabelled = inputs.number, inputs.spec.training, inputs.spec.dataset.unlabelled
    if steps == 0:
        seen = (
            "" if training.filters == FilterSpec() else ", seen through training.filters (see `lists filter-report`),"
        )
        raise DataError(
            f"round {number}: none of {inputs.num_rows} ranked lists{seen} has two candidates to learn from"
        )
    only_positives = all(term.weight == 0 or term.LEARNS_FROM == "positives" for term in training.objective)
    if positives["queries"] and not positives["with_positive"] and only_positives:
        raise DataError(
            f"round {number}: no list had a positive: no labels, and the teacher's best candidate never reached "
            f"dataset.unlabelled.min_confidence {unlabelled.min_confidence}; no term of the objective then "
            "learns anything"
        )


def _settings_hash(spec: DistillationSpec) -> str:
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]
