"""Show a finished job's result as a table a person can judge at a glance."""

from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.evaluation.result import EvaluationResult, comparison
from pipelines.evaluation.round_table import ROUND_COLUMNS, round_cells
from pipelines.evaluation.wording import LABELS, SIGNIFICANT_BELOW

__all__ = ["print_result"]


def print_result(result: dict[str, Any], console: Console) -> None:
    """Print the systems' measures, the share of the gap closed, whether the gains are beyond noise, and the rounds."""
    if rounds := result.get("rounds"):
        _print_rounds(rounds, console)
    if result["evaluation"] is None:
        console.print("no test split was named, so nothing was measured")
        return
    evaluation = EvaluationResult.from_dict(result["evaluation"])
    measures = list(next(iter(evaluation.systems.values())))
    table = Table(title=f"{evaluation.num_queries} held-out queries, {evaluation.num_documents} documents")
    table.add_column("system")
    for measure in measures:
        table.add_column(measure, justify="right")
    for system, values in evaluation.systems.items():
        style = "bold" if system == "student_after" else None
        table.add_row(LABELS[system], *(f"{values[measure]:.3f}" for measure in measures), style=style)
    console.print(table)
    if evaluation.gap_closed is not None:
        console.print(f"share of the teacher-student gap closed (nDCG@10): [bold]{evaluation.gap_closed:.0%}[/]")
    for other in ("student_before", "label_only"):
        test = evaluation.comparisons.get(comparison("student_after", other))
        if test:
            verdict = "beyond noise" if test.p_value < SIGNIFICANT_BELOW else "not distinguishable from noise"
            console.print(
                f"{LABELS['student_after']} - {LABELS[other]}: {test.mean_difference:+.3f} nDCG@10, "
                f"p = {test.p_value:.2g} ({verdict})"
            )


def _print_rounds(rounds: list[dict[str, Any]], console: Console) -> None:
    """A column per round: a terminal has room for some rounds, not for all their figures side by side."""
    table = Table(title="round by round: dev queries, and how hard the negatives were")
    (title, *rounds_named), *rows = zip(ROUND_COLUMNS, *map(round_cells, rounds), strict=True)
    table.add_column(title)
    for name in rounds_named:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
