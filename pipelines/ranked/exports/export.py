"""Write the lists of one round in a format: all of it or nothing, and an account of what stayed behind.

Enters: a table, a round, a format, texts, who counts as a positive, filters. Leaves: a folder with `data/`, `README.md`
and `manifest.json`, and an `ExportReport`. Lists are read, filtered, turned into rows and written some at a time, so
memory does not grow with the round. The folder is built under a scratch name and renamed at the end.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.exports.card import is_export, write_card
from pipelines.ranked.exports.choice import ExportOptions, Texts, chosen_lists, hardest
from pipelines.ranked.exports.format import Format
from pipelines.ranked.exports.writers import TableFiles
from pipelines.ranked.filters import judge
from pipelines.ranked.find import dataset_of
from pipelines.ranked.positives import PositiveRule, positives
from pipelines.ranked.table import RankedLists, RoundOfLists
from pipelines.ranked.verdicts import Reason
from pipelines.spec_sections.filters import FilterSpec

__all__ = ["ExportReport", "Selection", "export_lists"]

_NOT_AMONG_HARDEST = "not among the hardest"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which candidates leave, and as what."""

    rule: PositiveRule
    filters: FilterSpec | None = None
    options: ExportOptions = field(default_factory=ExportOptions)


@dataclass
class ExportReport:
    """Counts of one export. A list or candidate that was left out is counted once, under one reason."""

    lists: int = 0
    """In the round."""
    lists_exported: int = 0
    positives: int = 0
    """Of exported lists."""
    negatives: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    """By table."""
    lists_left_out: Counter[str] = field(default_factory=Counter)
    candidates_left_out: Counter[str] = field(default_factory=Counter)
    """Of all lists, by the filters' reason or because the export takes fewer negatives; those of a list that is
    left out whole for another reason are not counted here."""
    weights_versions: Counter[str] = field(default_factory=Counter)
    """Lists by the version of the teacher's weights; above 0 the contract's hash is not theirs (a ranker learned)."""
    miners: Counter[str] = field(default_factory=Counter)
    """Lists by the state of the student that found their candidates."""

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `counts`, `weights_versions`, `miners` and `left_out`."""
        return {
            "counts": {
                "lists": self.lists,
                "lists_exported": self.lists_exported,
                "positives": self.positives,
                "negatives": self.negatives,
                "rows": dict(self.rows),
            },
            "weights_versions": dict(sorted(self.weights_versions.items())),
            "miners": dict(sorted(self.miners.items())),
            "left_out": {
                "lists": dict(sorted(self.lists_left_out.items())),
                "candidates": dict(sorted(self.candidates_left_out.items())),
            },
        }


def export_lists(
    lists: RankedLists,
    round_of_lists: RoundOfLists,
    destination: Path,
    *,
    format_: Format,
    texts: Texts,
    selection: Selection,
    overwrite: bool = False,
) -> ExportReport:
    """Export what is committed of a round now.

    Args:
        lists: the table.
        round_of_lists: which lists of it.
        destination: the folder that will hold the export.
        format_: of the export.
        texts: of queries and documents; not asked when the format needs none and no filter compares texts.
        selection: who is a positive, which filters, how many negatives.
        overwrite: replace an earlier export; anything else at `destination` is never replaced.

    Raises:
        RankedListsError: something is at `destination`, it cannot be written, or a list cannot be read.
        DataError: a document or query of the lists is not in the data set, or its id does not fit the format.
        SpecError: the format needs an option that was not given.
    """
    tables = format_.tables(selection.options)
    with _built(destination, overwrite=overwrite) as scratch:
        (scratch / "data").mkdir()
        report = ExportReport()
        with TableFiles(scratch / "data", tables) as files:
            for rows in lists.chunks(round_of_lists.job_id, round_of_lists.round_number):
                report.weights_versions.update(map(str, rows["weights_version"].to_pylist()))
                report.miners.update(miner for miner in rows["miner"].to_pylist() if miner is not None)
                _write(rows, files, report, format_=format_, texts=texts, selection=selection)
        report.rows = files.num_rows
        facts = {
            "job_id": round_of_lists.job_id,
            "round": round_of_lists.round_number,
            "contract": lists.contract.to_dict(),
            "contract_fingerprint": lists.contract.fingerprint,
            "dataset_fingerprint": dataset_of(lists),
            "positives": {
                "labels": selection.rule.use_labels,
                "teacher_top": selection.rule.teacher_top,
                "min_confidence": selection.rule.min_confidence,
            },
            "filters": selection.filters.model_dump(mode="json", exclude_none=True) if selection.filters else None,
            "num_negatives": selection.options.num_negatives,
            "code_version": version("dualdistill"),
            **report.to_dict(),
        }
        write_card(scratch, format_=format_, tables=tables, facts=facts, shown_as=destination.name)
    return report


def _write(
    rows: pa.Table,
    files: TableFiles,
    report: ExportReport,
    *,
    format_: Format,
    texts: Texts,
    selection: Selection,
) -> None:
    columns = ListColumns(rows)
    positive = positives(columns, selection.rule)
    kept = np.ones(columns.num_candidates, dtype=np.bool_)
    if selection.filters is not None:
        verdicts = judge(
            columns, selection.filters, positive=positive, text_of=lambda ids: [texts.passage(each) for each in ids]
        )
        kept, positive = verdicts.kept, positive | verdicts.relabelled
        report.candidates_left_out.update(
            {reason.label: n for reason, n in verdicts.counts().items() if n and reason > Reason.RELABELLED}
        )
    negative = kept & ~positive
    hard = hardest(columns, negative, selection.options.num_negatives)
    report.candidates_left_out.update({_NOT_AMONG_HARDEST: left} if (left := int((negative & ~hard).sum())) else {})
    for chosen in chosen_lists(columns, chosen=(kept & positive) | hard, positive=positive):
        report.lists += 1
        if why := format_.lacks(chosen, selection.options):
            report.lists_left_out[why] += 1
            continue
        for table, row in format_.rows(chosen, texts, selection.options):
            files.write(table, row)
        report.lists_exported += 1
        report.positives += sum(chosen.positive)
        report.negatives += len(chosen.positive) - sum(chosen.positive)


@contextmanager
def _built(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """A scratch folder beside `destination` that takes its place if all goes well, and vanishes if not."""
    _check_free(destination, overwrite=overwrite)
    scratch = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        _check_free(destination, overwrite=overwrite)
        _take_place(scratch, destination)
    except OSError as error:
        raise RankedListsError(f"{str(destination)!r} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_place(scratch: Path, destination: Path) -> None:
    """Rename; what was there is deleted when the new folder stands in its place, and put back if it cannot."""
    replaced = scratch.with_name(f"{scratch.name}.old")
    if destination.exists():
        destination.rename(replaced)
    try:
        scratch.rename(destination)
    except OSError:
        if replaced.exists():
            replaced.rename(destination)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _check_free(destination: Path, *, overwrite: bool) -> None:
    if not (destination.exists() or destination.is_symlink()):
        return
    if not overwrite:
        raise RankedListsError(f"{str(destination)!r} exists; --force replaces an earlier export")
    if destination.is_symlink() or not is_export(destination):
        raise RankedListsError(f"{str(destination)!r} exists and is no export, so it is not replaced")
