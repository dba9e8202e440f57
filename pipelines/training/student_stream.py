"""What a round's training reads, and the stream it makes of it: prepared batches, each with the position after it.

Enters: a round's lists, arriving or there. Leaves: batches with their texts as tokens, the next one made while the last
one is learned from; lists that pacing or a filter leaves out are not among them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.corpus.dataset import Dataset
from pipelines.journal import Journal
from pipelines.ranked.read_ahead import read_ahead
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.ranked.view import filtered_view
from pipelines.spec import DistillationSpec
from pipelines.training.batches import ListBatch, batches
from pipelines.training.dev_set import DevSet
from pipelines.training.encoding import StepTexts
from pipelines.training.metric_loggers import MetricLogger
from pipelines.training.paced_rows import PacedRows
from pipelines.training.pacing import Pacing
from pipelines.training.settings import positive_rule
from pipelines.training.snapshots import EarlySnapshot
from pipelines.training.student_step import StudentStep
from pipelines.training.workers import ALONE, Workers

__all__ = ["Prepared", "TrainingInputs", "prepared_batches"]

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
    loggers: Sequence[MetricLogger]
    """Told the numbers of training; the first worker's are."""
    steps_before: int
    """Of earlier rounds."""
    early: EarlySnapshot | None = None
    """Also keep the step as it is before the round's end."""
    workers: Workers = ALONE


def prepared_batches(
    inputs: TrainingInputs, step: StudentStep, start: StreamPosition
) -> Iterator[tuple[Prepared, StreamPosition]]:
    """Batches with their tokens, the next one made while the last one is learned from."""
    spec, training = inputs.spec, inputs.spec.training
    rule = positive_rule(spec)
    paced = _pace(inputs, step)

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
        made = batches(
            rows,
            inputs.dataset,
            queries_per_step=training.queries_per_step,
            width=training.candidates_per_query,
            rule=rule,
            negatives=training.negatives,
            seed=spec.seed,
            takes_part=lambda row: paced is None or paced.takes_part(row, check),
        )
        prepared = (((batch, StepTexts.of(step.student, batch)), following) for batch, following in made)
        yield from paced.made(prepared) if paced else prepared

    ahead = read_ahead(prepare)
    return paced.learned(ahead) if paced else ahead


def _pace(inputs: TrainingInputs, step: StudentStep) -> PacedRows | None:
    training, rounds = inputs.spec.training, inputs.spec.rounds.count
    if training.pacing is None or step.query_losses is None:
        return None
    return PacedRows(
        Pacing(training.pacing),
        step.query_losses,
        step.query_row,
        num_rows=inputs.num_rows,
        epochs=rounds * training.epochs,
        first_epoch=inputs.number * training.epochs,
    )
