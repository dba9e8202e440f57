"""A ranker learns from labelled lists: before a job, as its teacher, or round by round, against its own student.

Enters: a checkpoint, lists with judged positives, how to optimise. Leaves: the trained cross-encoder and its pairs. It
goes on from the newest checkpoint of its run.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device, resolve_dtype, seed_everything
from pipelines.ranked.lookup import CandidateRows
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import TeacherSpec
from pipelines.teacher.pairs import PairEncoder
from pipelines.training.batches import ListBatch, batches
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.labelled import labelled_rows
from pipelines.training.loop import StepReport, train
from pipelines.training.optimizer import LoopSettings
from pipelines.training.ranker import new_ranker, ranker_losses
from pipelines.training.workers import ALONE, Workers

__all__ = ["fit_ranker"]

_GOLD_ONLY = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


def fit_ranker(
    base: Path,
    dataset: Dataset,
    labelled: CandidateRows,
    teacher: TeacherSpec,
    settings: LoopSettings,
    *,
    dropout: float,
    dtype: str,
    lists_per_step: int,
    negatives_per_list: int,
    stream_seed: int,
    checkpoints: Checkpoints,
    on_step: Callable[[StepReport], None],
    workers: Workers = ALONE,
) -> tuple[Any, PairEncoder]:
    """Train the checkpoint in `base` on the lists of `labelled` that have a positive and something below it.

    Args:
        base: a model folder; its head is new where it has none.
        dataset: texts.
        labelled: candidates with judgements; other queries are passed over.
        teacher: how pairs are cut and laid out.
        settings: of the optimizer; the lists are read as often as its steps need.
        dropout: while it learns.
        dtype: `auto`, `fp32` or `bf16`.
        lists_per_step: queries.
        negatives_per_list: at most so many.
        stream_seed: of the order of lists, and of the draw where they hold more negatives.
        checkpoints: of its run.
        on_step: called after every step; what it raises ends the training.
        workers: who trains together; all call this alike.

    Raises:
        DataError: no list has both a positive and something to put below it.
        ModelError: the checkpoint cannot become a ranker.
    """
    device = resolve_device()
    seed_everything(settings.seed)
    model, encoder = new_ranker(
        base, max_length=teacher.max_length, truncation=teacher.truncation, dropout=dropout, device=device
    )
    concrete = resolve_dtype(dtype, device_type=device.type)

    def open_batches(start: StreamPosition) -> Iterator[tuple[ListBatch, StreamPosition]]:
        return batches(
            labelled_rows(labelled, start=start, seed=stream_seed),
            dataset,
            queries_per_step=lists_per_step,
            width=negatives_per_list + 1,
            rule=_GOLD_ONLY,
            seed=stream_seed,
        )

    train(
        model,
        lambda batch: ranker_losses(model, encoder, batch, dtype=concrete, workers=workers),
        open_batches,
        settings,
        on_step=on_step,
        checkpoints=checkpoints,
        workers=workers,
    )
    return model, encoder
