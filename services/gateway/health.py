"""Is this process alive, can it work, and what is it: for load balancers, compose and people.

`/healthz` says that the process answers. `/readyz` asks the database and the Ray cluster and is 503 when one
of them does not answer; jobs are still accepted while only Ray is away, and start when it is back.
"""

from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version

from fastapi import APIRouter, Response
from sqlalchemy.exc import DBAPIError

from services.errors import RayUnavailable
from services.gateway.context import Context

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(context: Context, response: Response) -> dict[str, str | dict[str, str]]:
    """What this process depends on answers too."""
    checks = {
        "database": _ask(context.store.ping, DBAPIError, "does not answer"),
        "ray": _ask(context.ray.ping, RayUnavailable, None),
    }
    ready = all(answer == "ok" for answer in checks.values())
    if not ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return {"status": "ready" if ready else "unavailable", "checks": checks}


@router.get("/v1/version")
def get_version() -> dict[str, str]:
    """The release this gateway runs."""
    return {"name": "dualdistill", "version": version("dualdistill"), "api": "v1"}


def _ask(question: Callable[[], object], failure: type[Exception], answer: str | None) -> str:
    try:
        question()
    except failure as error:
        return answer or str(error)  # a database error carries host and user names: not for everybody
    return "ok"
