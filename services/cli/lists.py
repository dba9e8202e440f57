"""`dualdistill lists ...`: look at ranked lists, take them away, bring scores that were made elsewhere.

Enters: a root, what is wanted of it, the data set's folder where texts are needed. Leaves: tables in the terminal, an
export, an imported table. No gateway is asked: lists are files.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.ranked.exports.choice import ExportOptions, NoTexts
from pipelines.ranked.exports.export import Selection, export_lists
from pipelines.ranked.exports.registry import FORMATS, format_named
from pipelines.ranked.find import all_tables, find_list, find_lists, pick_round
from pipelines.ranked.imports import import_scores
from pipelines.spec import SpecError, load_filters
from services.cli.lists_input import PositiveSource, answered, dataset_at, positive_rule, say_unreadable
from services.cli.lists_view import print_export, print_import, print_list, print_tables
from services.cli.output import console

__all__ = ["lists"]

lists = typer.Typer(no_args_is_help=True, help="Look at ranked lists, take them away, bring scores made elsewhere.")

_LOCAL_ROOT = ".dualdistill/local"
_FORMATS = "\n\n".join(f"{name}: {each.summary}." for name, each in FORMATS.items())


Root = Annotated[
    str,
    typer.Option(
        envvar="DUALDISTILL_LISTS_URL", help="Where lists are kept: the root of the jobs, or s3://bucket/prefix."
    ),
]
Data = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The data set, for texts: what dataset.path of the job named.")
]
Job = Annotated[str | None, typer.Option(metavar="JOB_ID", help="Whose lists; needed if there are several jobs.")]
Round = Annotated[int | None, typer.Option("--round", help="Which round; the last one, if it is not given.")]
Contract = Annotated[
    str | None, typer.Option(metavar="PREFIX", help="How the fingerprint of the score contract begins.")
]
Filters = Annotated[
    Path | None, typer.Option(metavar="FILE.yaml", help="Filters to see the lists through; stored lists do not change.")
]
Source = Annotated[
    PositiveSource, typer.Option("--positives", help="Judged documents, the teacher's best where it is sure, or both.")
]
Confidence = Annotated[
    float, typer.Option(min=0, max=1, help="Softmax probability that makes the teacher's best a positive.")
]


@lists.command("list")
def list_tables(root: Root = _LOCAL_ROOT) -> None:
    """All tables, with the jobs and rounds in them."""
    print_tables(answered(lambda: all_tables(root, unreadable=say_unreadable)), console)


@lists.command("inspect")
def inspect(
    query_id: Annotated[str, typer.Argument(metavar="QUERY_ID", help="The query whose list is shown.")],
    *,
    root: Root = _LOCAL_ROOT,
    data: Data = None,
    job: Job = None,
    round_number: Round = None,
    contract: Contract = None,
    filters: Filters = None,
    source: Source = PositiveSource.BOTH,
    min_confidence: Confidence = 0.5,
    full: Annotated[bool, typer.Option("--full", help="Whole texts.")] = False,
) -> None:
    """One query's ranked list: who is in it, what teacher and student say, and why each candidate is kept or not."""

    def show() -> None:
        dataset = dataset_at(data) if data else None
        fingerprint = dataset.fingerprint if dataset else None
        found = find_lists(root, job, dataset_fingerprint=fingerprint, contract=contract)
        print_list(
            find_list(found, query_id, job_id=job, round_number=round_number),
            found.contract,
            console,
            dataset=dataset,
            rule=positive_rule(source, min_confidence),
            filters=load_filters(filters) if filters else None,
            full=full,
        )

    answered(show)


@lists.command("export", help=f"Write the lists of a round in a format that another trainer reads.\n\n{_FORMATS}")
def export(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the export goes; it must not exist.")],
    *,
    root: Root = _LOCAL_ROOT,
    data: Data = None,
    job: Job = None,
    round_number: Round = None,
    contract: Contract = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="At most so many of each list, hardest first; n-tuple needs a number.")
    ] = None,
    filters: Filters = None,
    source: Source = PositiveSource.BOTH,
    min_confidence: Confidence = 0.5,
    tag: Annotated[str, typer.Option(help="Last column of a TREC run.")] = "dualdistill",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write the lists of a round in a format that another trainer reads."""

    def write() -> None:
        format_ = format_named(format_name)
        filter_spec = load_filters(filters) if filters else None
        selection = Selection(
            rule=positive_rule(source, min_confidence),
            filters=filter_spec,
            options=ExportOptions(num_negatives=negatives, tag=tag),
        )
        dataset = dataset_at(data) if data else None
        texts_wanted = format_.needs_texts or (filter_spec is not None and filter_spec.same_text == "drop")
        if dataset is None and texts_wanted:
            raise SpecError([("--data", f"{format_.name} holds texts: give the data set's folder")])
        fingerprint = dataset.fingerprint if dataset else None
        found = find_lists(root, job, dataset_fingerprint=fingerprint, contract=contract)
        chosen = pick_round(found, job, round_number)
        report = export_lists(
            found, chosen, out, format_=format_, texts=dataset or NoTexts(), selection=selection, overwrite=force
        )
        print_export(report, chosen, out, console)

    answered(write)


@lists.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A TREC run, or .jsonl or .parquet with query_id, doc_id and score; a query's lines stand together.",
        ),
    ],
    *,
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="The data set whose ids the file uses.")],
    name: Annotated[str, typer.Option(help="Who made the scores; kept in their contract.")],
    split: Annotated[str | None, typer.Option(help="Take relevance from this split of the data set.")] = None,
    root: Root = _LOCAL_ROOT,
) -> None:
    """Make ranked lists of scores made elsewhere, under a contract of their own; prints the job that holds them."""

    def bring() -> None:
        print_import(import_scores(file, dataset_at(data, split), root, name=name, split=split), console)

    answered(bring)
