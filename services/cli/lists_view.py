"""Ranked lists in the terminal: the tables there are, one query's list, what an export or import did.

Enters: what `pipelines.ranked` found. Leaves: printed lines. Ranks are shown from 1, as people count.
"""

from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.columns import NO_RANK, UNJUDGED
from pipelines.ranked.exports.export import ExportReport
from pipelines.ranked.filters import judge
from pipelines.ranked.find import FoundList, FoundTable
from pipelines.ranked.imports import ImportReport
from pipelines.ranked.positives import PositiveRule, positives
from pipelines.ranked.schema import round_name
from pipelines.ranked.table import RoundOfLists
from pipelines.ranked.verdicts import Reason
from pipelines.spec_sections.filters import FilterSpec
from pipelines.teacher.contract import ScoreContract

__all__ = ["print_export", "print_import", "print_list", "print_tables"]

_SHORT = 12
_SNIPPET = 160


def print_tables(tables: list[FoundTable], console: Console) -> None:
    """A paragraph per table, a line per job: names to be copied stay whole on a narrow terminal."""
    if not tables:
        console.print("there are no ranked lists yet")
        return
    for table in tables:
        contract = table.lists.contract
        fingerprints = f"data set {table.dataset_fingerprint[:_SHORT]}, contract {contract.fingerprint[:_SHORT]}"
        lines = [f"{fingerprints}, scored by {contract.model_id}"]
        for job, rounds in groupby(table.lists.rounds(), key=lambda each: each.job_id):
            counts = ", ".join(f"{_round(each)}: {each.num_lists:,}" for each in rounds)
            lines.append(f"  {job}  {counts}")
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def print_list(
    found: FoundList,
    contract: ScoreContract,
    console: Console,
    *,
    dataset: Dataset | None,
    rule: PositiveRule,
    filters: FilterSpec | None,
    full: bool,
) -> None:
    """One list, best first; with `full` one block per candidate instead of one row.

    Raises:
        DataError: a document of the list is not in the data set.
        RankedListsError: the filters compare texts, and there is no data set.
    """
    columns, candidates = found.columns, range(*found.columns.offsets[found.place : found.place + 2].tolist())
    query_id = str(columns.query_id[found.place])
    positive = positives(columns, rule)
    reasons = [Reason.POSITIVE if positive[each] else Reason.KEPT for each in candidates]
    if filters is not None:
        text_of = (lambda ids: [dataset.passage(each) for each in ids]) if dataset else None
        verdicts = judge(columns, filters, positive=positive, text_of=text_of)
        reasons = [verdicts.reason_of(each) for each in candidates]
    head = {
        "query": query_id + (f": {dataset.query_text(query_id)}" if dataset else ""),
        "job": f"{found.round.job_id}, {_round(found.round)}",
        "scored by": f"{contract.model_id}, weights version {columns.weights_version[found.place]}, "
        f"contract {contract.fingerprint[:_SHORT]}",
    }
    for name, fact in head.items():
        console.print(f"{name:10} {fact}", highlight=False, markup=False, soft_wrap=True)
    cells = [_cells(found, each, reason) for each, reason in zip(candidates, reasons, strict=True)]
    texts = [dataset.passage(str(columns.doc_id[each])) if dataset else "" for each in candidates]
    if full:
        _print_blocks(cells, texts, console)
    else:
        _print_rows(cells, texts, console)


def _cells(found: FoundList, candidate: int, reason: Reason) -> dict[str, str]:
    columns = found.columns
    student, relevance = columns.student_score[candidate], int(columns.relevance[candidate])
    return {
        "rank": str(columns.rank[candidate] + 1),
        "document": str(columns.doc_id[candidate]),
        "teacher logit": f"{columns.teacher_logit[candidate]:.4f}",
        "student": "" if np.isnan(student) else f"{student:.4f}",
        "bm25": _rank(int(columns.bm25_rank[candidate])),
        "dense": _rank(int(columns.dense_rank[candidate])),
        "judged": "" if relevance == UNJUDGED else str(relevance),
        "verdict": reason.label,
    }


def _print_rows(cells: list[dict[str, str]], texts: list[str], console: Console) -> None:
    shown = Table()
    for name in cells[0] if cells else ():
        shown.add_column(name, no_wrap=True, justify="left" if name in {"document", "verdict"} else "right")
    if any(texts):
        shown.add_column("text")
    for row, text in zip(cells, texts, strict=True):
        # One line each, cut where the terminal ends; the column gives way before the numbers do.
        snippet = [Text(" ".join(text.split())[:_SNIPPET], no_wrap=True, overflow="ellipsis")] if any(texts) else []
        style = "bold" if row["verdict"] in {Reason.POSITIVE.label, Reason.RELABELLED.label} else None
        shown.add_row(*(Text(cell) for cell in row.values()), *snippet, style=style)
    console.print(shown)


def _print_blocks(cells: list[dict[str, str]], texts: list[str], console: Console) -> None:
    for row, text in zip(cells, texts, strict=True):
        facts = ", ".join(f"{name} {cell}" for name, cell in row.items() if cell and name not in {"rank", "document"})
        console.print(f"\n{row['rank']}. {row['document']}  ({facts})", highlight=False, markup=False, soft_wrap=True)
        if text:
            console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_export(report: ExportReport, round_: RoundOfLists, folder: Path, console: Console) -> None:
    """What was written, and what was left out and why."""
    lines = [
        f"{report.lists_exported:,} of {report.lists:,} lists of job {round_.job_id}, {_round(round_)}",
        f"{report.positives:,} positives, {report.negatives:,} negatives",
        *(f"left out: {_count(n, 'list')}, {why}" for why, n in sorted(report.lists_left_out.items())),
        *(f"left out: {_count(n, 'candidate')}, {why}" for why, n in sorted(report.candidates_left_out.items())),
        *(f"{_count(number, 'row')} in table {table}" for table, number in report.rows.items()),
        f"{folder}  (README.md says how to load it)",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_import(report: ImportReport, console: Console) -> None:
    """The job on a line of its own, for scripts; then what it holds."""
    already = report.num_lists - report.num_committed
    contract = report.lists.contract
    lines = [
        report.job_id,
        f"{_count(report.num_lists, 'list')}, {_count(report.num_pairs, 'score')} of {contract.model_id}",
        f"contract {contract.fingerprint[:_SHORT]}",
        *([f"{_count(already, 'list')} were there before and stayed as they are"] if already else []),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _round(each: RoundOfLists) -> str:
    return round_name(each.round_number)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rank(rank: int) -> str:
    return "" if rank == NO_RANK else str(rank + 1)
