"""A filter report on a terminal: what the filters keep and why, what other settings would keep, where the logits lie.

Enters: a `FilterReport`. Leaves: tables, and histograms made of blocks.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipelines.ranked.filter_report import FilterReport, Outcome
from pipelines.ranked.histogram import Histogram
from pipelines.ranked.verdicts import Reason

__all__ = ["print_filter_report"]

_BAR = 24


def print_filter_report(report: FilterReport, console: Console) -> None:
    """Print everything a report holds but the exact filters of each row."""
    console.print(
        f"{report.num_lists:,} lists, {report.num_candidates:,} candidates, {report.num_positives:,} of them positives",
        highlight=False,
    )
    if report.num_lists_without_positive:
        console.print(
            f"{report.num_lists_without_positive:,} lists have no positive: margins do nothing there", highlight=False
        )
    console.print(_reasons(report))
    console.print(_sweep(report))
    logits = [("positives", report.positive_logits), ("others", report.negative_logits)]
    _print_histogram("teacher logit", logits, console)
    _print_histogram("logit of the positive minus the candidate's", [("others", report.margins)], console)


def _reasons(report: FilterReport) -> Table:
    table = Table("the filters given", _number("candidates"), _number("of all"))
    for reason in Reason:
        count = report.given.reasons[reason.label]
        if count:
            table.add_row(reason.sentence, f"{count:,}", _share(count, report.num_candidates))
    return table


def _sweep(report: FilterReport) -> Table:
    """One row for each choice of filters, below the name of the setting that is changed."""
    table = Table(
        Column("setting", no_wrap=True),
        *map(_number, ("kept", "of all", "min", "median", "mean", "relabelled", "dropped")),
        title="one setting changed at a time",
        caption="min, median, mean: negatives of a list that stays.\n"
        "dropped: lists that keep fewer than two candidates; training skips them.",
        collapse_padding=True,
        pad_edge=False,
    )
    above = ""
    for outcome in (report.given, *report.sweep):
        setting, _, value = outcome.setting.partition(": ")
        if value and setting != above:
            table.add_section()
            table.add_row(setting, style="cyan")
        above = setting
        style = "bold" if outcome.filters == report.given.filters else None
        table.add_row(f" {value}" if value else setting, *_row(outcome, report), style=style)
    return table


def _row(outcome: Outcome, report: FilterReport) -> list[str]:
    negatives = outcome.negatives_per_list
    return [
        f"{outcome.num_kept:,}",
        _share(outcome.num_kept, report.num_candidates),
        f"{negatives.min}",
        f"{negatives.median:g}",
        f"{negatives.mean:.1f}",
        f"{outcome.num_relabelled:,}" if outcome.num_relabelled else "",
        f"{outcome.num_lists_dropped:,}" if outcome.num_lists_dropped else "",
    ]


def _print_histogram(what: str, histograms: Sequence[tuple[str, Histogram]], console: Console) -> None:
    """Histograms of the same bins side by side, each against its own tallest bin."""
    shown = [(name, each) for name, each in histograms if each.total]
    if not shown:
        return
    table = Table(_number(what))
    for name, each in shown:
        table.add_column(f"{name} ({each.total:,})", no_wrap=True)
    bins = shown[0][1]
    for place in range(len(bins.counts)):
        bars = (_bar(each.counts[place], max(each.counts)) for _, each in shown)
        table.add_row(f"{bins.start + place * bins.width:g}", *bars)
    console.print(table)


def _bar(count: int, tallest: int) -> Text:
    length = round(_BAR * count / tallest)
    return Text(("█" * length or "▏") + f" {count:,}" if count else "")


def _number(name: str) -> Column:
    return Column(name, justify="right")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""
