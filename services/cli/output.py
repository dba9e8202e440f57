"""What all commands share: where they print, where they look for the gateway, how they end when something is refused.

Exit statuses: 0 done, 1 it did not work, 2 the user must mend something.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from pipelines.spec import SpecError
from services.cli.client import RequestRefused
from services.errors import ServiceError
from services.settings import GATEWAY_PORT

__all__ = ["LOCAL_URL", "Url", "console", "refuse_bad_input"]

LOCAL_URL = f"http://127.0.0.1:{GATEWAY_PORT}"
Url = Annotated[str, typer.Option(envvar="DUALDISTILL_URL", help="Where the gateway is.")]
T = TypeVar("T")
console = Console()


def refuse_bad_input(step: Callable[[], T]) -> T:
    """Run `step`; what the user can mend is printed field by field, and the command ends with status 2 (or 1)."""
    try:
        return step()
    except (SpecError, RequestRefused) as error:
        for path, detail in error.problems or [("request", str(error))]:
            console.print(f"[red]{escape(path)}[/]: {escape(detail)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2 if _mendable(error) else 1) from error
    except ServiceError as error:
        console.print(f"[red]failed[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _mendable(error: SpecError | RequestRefused) -> bool:
    """A gateway that cannot do it now (5xx, or 429: busy) asks for patience, not for another request."""
    return not isinstance(error, RequestRefused) or (error.status < 500 and error.status != 429)
