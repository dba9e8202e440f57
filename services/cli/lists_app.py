"""`dualdistill lists`: all its commands in one place.

Enters: nothing. Leaves: the command group that `app` mounts.
"""

from services.cli.filter_report import filter_report
from services.cli.lists import lists
from services.cli.lists_upkeep import compact, vacuum

__all__ = ["lists"]

lists.command("filter-report")(filter_report)
lists.command()(compact)
lists.command()(vacuum)
