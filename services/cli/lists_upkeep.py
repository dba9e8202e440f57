"""`dualdistill lists compact` and `vacuum`: fewer files, and none that no reader can need.

Enters: a root, a job. Leaves: the same lists; what was done, in the terminal.
"""

from typing import Annotated

import typer

from pipelines.ranked import upkeep
from pipelines.ranked.find import all_tables, find_lists
from services.cli.lists import Contract, Job, Root
from services.cli.lists_input import answered, say_unreadable
from services.cli.output import console

__all__ = ["compact", "vacuum"]


def compact(root: Root = ".dualdistill/local", job: Job = None, contract: Contract = None) -> None:
    """Join small files; jobs do it by themselves as they go on."""

    def join() -> int:
        lists = find_lists(root, job, contract=contract)
        rounds = [each for each in lists.rounds() if job in (None, each.job_id)]
        return sum(upkeep.compact(lists, each.job_id, each.round_number) for each in rounds)

    console.print(f"{answered(join):,} files fewer", highlight=False)


def vacuum(
    root: Root = ".dualdistill/local",
    retention_hours: Annotated[
        float, typer.Option(help="How long ago a file must have left its table; at least 1.")
    ] = upkeep.RETENTION_HOURS,
) -> None:
    """Delete files of all tables that no reader can need, nor a writer that is at work."""

    def clean() -> None:
        for table in all_tables(root, unreadable=say_unreadable):
            removed = upkeep.vacuum(table.lists, retention_hours=retention_hours)
            console.print(f"{table}: {len(removed):,} files deleted", highlight=False, markup=False, soft_wrap=True)

    answered(clean)
