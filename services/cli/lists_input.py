"""What the user of `dualdistill lists` names, as the objects that it means: a data set, a rule.

Enters: folders, files, words. Leaves: what `pipelines` takes, or an exit with a sentence: 1 it did not work, 2 the user
must mend something.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import typer
from rich.markup import escape

from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.errors import PipelineError, RankedListsError
from pipelines.ranked.positives import PositiveRule
from pipelines.spec import DatasetSpec
from services.cli.output import console, refuse_bad_input

__all__ = ["PositiveSource", "answered", "dataset_at", "positive_rule", "say_unreadable"]

T = TypeVar("T")


class PositiveSource(StrEnum):
    """Where a list's positives come from."""

    LABELS = "labels"
    TEACHER = "teacher"
    BOTH = "both"


def answered(step: Callable[[], T]) -> T:
    """Run `step`; an error of `pipelines` ends the command with a sentence instead of a traceback."""
    try:
        return refuse_bad_input(step)
    except PipelineError as error:
        console.print(f"[red]failed[/] ({error.reason}): {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def say_unreadable(error: RankedListsError) -> None:
    """One table of several cannot be read: the others are of use all the same."""
    console.print(f"[yellow]unreadable[/]: {escape(str(error))}", highlight=False, soft_wrap=True)


def dataset_at(folder: Path, split: str | None = None) -> Dataset:
    """Texts of a data set, and the judgements of one split where it is named.

    Raises:
        DataError: nothing is there, its layout is broken, or the split is missing.
    """
    return load_dataset(DatasetSpec(path=str(folder), train_split=split, test_split=None), folder)


def positive_rule(source: PositiveSource, min_confidence: float) -> PositiveRule:
    """Who counts as a positive: as in a job, where `both` is the default."""
    return PositiveRule(
        use_labels=source is not PositiveSource.TEACHER,
        teacher_top=source is not PositiveSource.LABELS,
        min_confidence=min_confidence,
    )
