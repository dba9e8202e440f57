"""`dualdistill lists filter-report`: what filters would leave of lists that are there, before anything trains on them.

Enters: a root, a job, filters, the data set's folder where texts are compared. Leaves: a report, as tables or as JSON.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.ranked.filter_report import FilterReport
from pipelines.ranked.filter_report import filter_report as counted
from pipelines.ranked.find import find_lists, pick_round
from pipelines.spec import SpecError, load_filters
from services.cli.filter_report_view import print_filter_report
from services.cli.lists import Confidence, Contract, Data, Job, Root, Round, Source
from services.cli.lists_input import PositiveSource, answered, dataset_at, positive_rule
from services.cli.output import console
from services.cli.overrides import parse_overrides

__all__ = ["filter_report"]


def filter_report(
    root: Root = ".dualdistill/local",
    data: Data = None,
    job: Job = None,
    round_number: Round = None,
    contract: Contract = None,
    filters: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Filters, or a job file that has them; without: from no filter on."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE", help="Set a filter, e.g. relative_margin=0.05."),
    ] = None,
    source: Source = PositiveSource.BOTH,
    min_confidence: Confidence = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what filters, and each of them with one setting changed, keep of a round's lists; with histograms."""

    def count() -> FilterReport:
        spec = load_filters(filters, parse_overrides(overrides))
        dataset = dataset_at(data) if data else None
        if dataset is None and spec.same_text == "drop":
            raise SpecError([("--data", "same_text 'drop' compares texts: give the data set's folder")])
        found = find_lists(root, job, dataset_fingerprint=dataset.fingerprint if dataset else None, contract=contract)
        chosen = pick_round(found, job, round_number)
        return counted(
            lambda: found.chunks(chosen.job_id, chosen.round_number),
            spec,
            rule=positive_rule(source, min_confidence),
            text_of=(lambda ids: [dataset.passage(doc_id) for doc_id in ids]) if dataset else None,
        )

    report = answered(count)
    if as_json:
        console.print_json(data=report.to_dict())
    else:
        print_filter_report(report, console)
