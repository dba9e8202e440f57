"""One round's training of the student, wherever it runs: in the job's own process or in each of several workers.

Enters: the round's lists, arriving or there, and a `StudentStep`. Leaves: the step trained, its checkpoints, a point of
the learning curve per step, events. It ends like one that was never interrupted, however often it was.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_dtype, seed_everything
from pipelines.errors import DataError
from pipelines.journal import Journal
from pipelines.ranked.read_ahead import read_ahead
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.ranked.view import filtered_view
from pipelines.spec import DistillationSpec, FilterSpec
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch, batches
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.dev_set import DevSet, dev_ndcg
from pipelines.training.encoding import StepTexts
from pipelines.training.held_out import HeldOutCheck
from pipelines.training.loop import StepReport, train
from pipelines.training.plan import plan_training
from pipelines.training.settings import encoding_settings, loop_settings, positive_rule
from pipelines.training.student_step import StudentStep
from pipelines.training.workers import ALONE, Workers

__all__ = ["TrainingInputs", "new_step", "train_student"]

Prepared = tuple[ListBatch, StepTexts]


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a round's training reads, writes and asks."""

    job_id: str
    spec: DistillationSpec
    dataset: Dataset
    lists: RankedLists
    work: Path
    """The job's own folder, the same for all workers."""
    number: int
    """Of the round."""
    num_rows: int
    """Lists of the round, those that are still to come included."""
    dev: DevSet | None
    journal: Journal
    wait: Callable[[], None]
    """Called while a chunk is missing; blocks a moment, and raises if it will never come."""
    watch: Callable[[], None]
    """Called after every step; raises if training is to end."""
    workers: Workers = ALONE


def new_step(
    student: DualEncoder, spec: DistillationSpec, *, previous: DualEncoder | None, workers: Workers = ALONE
) -> StudentStep:
    """The step of a job's spec around `student`."""
    training = spec.training
    return StudentStep(
        student,
        training.objective,
        encoding=encoding_settings(training, resolve_dtype(training.dtype, device_type=student.device.type)),
        previous=previous,
        momentum=training.momentum,
        ema_decay=training.ema_decay,
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
    settings = loop_settings(spec, inputs.num_rows, round_number=number)
    positives: Counter[str] = Counter()
    planned = False

    def losses_of(prepared: Prepared) -> dict[str, Tensor]:
        nonlocal planned
        batch, texts = prepared
        if not planned and inputs.workers.leads:
            _say_plan(inputs, step, batch, texts, steps=settings.total_steps)
        planned = True
        positives.update(queries=len(batch.positive), with_positive=int((batch.positive >= 0).sum()))
        losses: dict[str, Tensor] = step(batch, texts)
        return losses

    def on_step(report: StepReport) -> None:
        inputs.watch()
        if inputs.workers.leads:
            _report(inputs, report)

    checkpoints = Checkpoints(
        inputs.work / "checkpoints" / f"round-{number}",
        run_fingerprint=f"{inputs.job_id}/{number}/{_settings_hash(spec)}",
        keep=training.keep_checkpoints,
        facts=lambda: {"table_version": inputs.lists.version, "workers": inputs.workers.world},
    )
    point = train(
        step,
        losses_of,
        lambda start: _prepared_batches(inputs, step, start),
        settings,
        on_step=on_step,
        checkpoints=checkpoints,
        after_update=step.follow_weights,
        held_out=_held_out(inputs, step),
        workers=inputs.workers,
    )
    _require_something_learned(inputs, steps=point.step, positives=positives)
    if inputs.workers.leads:
        best = f"; dev nDCG@10 was best after step {point.best.step}: {point.best.value:.4f}" if point.best else ""
        message = f"round {number}: the student is trained; {positives['with_positive']} lists had a positive{best}"
        inputs.journal.event("training.finished", message, round=number, steps=point.step, **positives)


def _prepared_batches(
    inputs: TrainingInputs, step: StudentStep, start: StreamPosition
) -> Iterator[tuple[Prepared, StreamPosition]]:
    """Batches with their tokens, the next one made while the last one is learned from."""
    spec, training = inputs.spec, inputs.spec.training
    rule = positive_rule(spec)

    def prepare(check: Callable[[], None]) -> Iterator[tuple[Prepared, StreamPosition]]:
        def wait() -> None:
            inputs.wait()
            check()

        rows = follow(
            inputs.lists,
            job_id=inputs.job_id,
            round_number=inputs.number,
            num_rows=inputs.num_rows,
            rows_per_chunk=spec.candidates.queries_per_chunk,
            start=start,
            epochs=training.epochs,
            seed=spec.seed,
            wait=wait,
            view=filtered_view(training.filters, rule, lambda doc_ids: [inputs.dataset.passage(d) for d in doc_ids]),
            student_scores=training.negatives.strategy == "student_top",
        )
        for batch, following in batches(
            rows,
            inputs.dataset,
            queries_per_step=training.queries_per_step,
            width=training.candidates_per_query,
            rule=rule,
            negatives=training.negatives,
            seed=spec.seed,
        ):
            yield (batch, StepTexts.of(step.student, batch)), following

    return read_ahead(prepare)


def _held_out(inputs: TrainingInputs, step: StudentStep) -> HeldOutCheck | None:
    settings, dev = inputs.spec.evaluation.dev, inputs.dev
    if settings is None or dev is None:
        return None
    return HeldOutCheck(
        measure=lambda: dev_ndcg(step.outcome, inputs.dataset, dev),
        every_steps=settings.every_steps,
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
