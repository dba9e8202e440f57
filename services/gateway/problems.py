"""Every error answer: problem+json (RFC 9457) that also carries OpenAI's `error` member.

Enters: an exception. Leaves: one JSON body that generic HTTP tools and the unmodified `openai` client both
understand:

    {"type": "urn:dualdistill:problem:invalid_spec", "title": ..., "status": 422, "detail": ...,
     "instance": "urn:request:<id>", "errors": [{"pointer": "#/spec/rounds", "detail": ...}],
     "error": {"message": ..., "type": "invalid_request_error", "param": "rounds", "code": "invalid_spec"}}

A conflict with the state of a job or a teacher carries `x-should-retry: false`, because the openai client retries
every 409 otherwise. Nothing of an unexpected exception reaches the client: it is in the log, under the request id.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from services.errors import JobNotFound, StateConflict, TeacherNotFound
from services.gateway.request_id import request_id

__all__ = ["Problem", "answer", "install", "pointer"]

_log = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """An answer other than success. `errors` holds (JSON pointer or parameter name, what is wrong)."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.param = status, code, detail, param
        self.errors, self.headers = tuple(errors), dict(headers or {})


def pointer(parts: Sequence[str | int]) -> str:
    """A JSON pointer into the request body, as a URI fragment."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def install(app: FastAPI) -> None:
    """Make every exception of `app` answer as a problem."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, _from_validation(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "_")
        return answer(request, Problem(status, code, str(error.detail), headers=error.headers))

    @app.exception_handler(JobNotFound)
    async def job_not_found(request: Request, error: JobNotFound) -> JSONResponse:
        return answer(request, Problem(HTTPStatus.NOT_FOUND, error.reason, str(error), param="id"))

    @app.exception_handler(TeacherNotFound)
    async def teacher_not_found(request: Request, error: TeacherNotFound) -> JSONResponse:
        return answer(request, Problem(HTTPStatus.NOT_FOUND, error.reason, str(error), param="name"))

    @app.exception_handler(StateConflict)
    async def conflict(request: Request, error: StateConflict) -> JSONResponse:
        headers = {"x-should-retry": "false"}
        return answer(request, Problem(HTTPStatus.CONFLICT, error.reason, str(error), headers=headers))

    @app.exception_handler(DBAPIError)
    async def database(request: Request, error: DBAPIError) -> JSONResponse:
        _log.error("the database does not answer (request %s)", request_id(request), exc_info=error)
        detail = "The database does not answer; nothing was changed that was not confirmed."
        headers = {"retry-after": "2"}
        return answer(request, Problem(HTTPStatus.SERVICE_UNAVAILABLE, "database_unavailable", detail, headers=headers))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("request %s failed", request_id(request), exc_info=error)
        detail = f"Unexpected error; the server's log has it under request {request_id(request)}."
        return answer(request, Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail))


def _from_validation(error: RequestValidationError) -> Problem:
    items = error.errors()
    if items and items[0]["type"] == "json_invalid":
        detail = f"The body is not JSON: {items[0]['ctx']['error']}."
        return Problem(HTTPStatus.BAD_REQUEST, "invalid_json", detail)
    found: list[tuple[str, str]] = []
    for item in items:
        place, *rest = item["loc"]
        where = pointer(rest) if place == "body" else ".".join(str(part) for part in rest)
        found.append((where, "unknown field" if item["type"] == "extra_forbidden" else str(item["msg"])))
    first = items[0]["loc"][1:] if items else ()
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid_request",
        "; ".join(f"{where}: {detail}" for where, detail in found),
        param=".".join(str(part) for part in first) or None,
        errors=found,
    )


def answer(request: Request, problem: Problem) -> JSONResponse:
    """The response that tells a problem."""
    kind = "invalid_request_error" if problem.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    body: dict[str, Any] = {
        "type": f"urn:dualdistill:problem:{problem.code}",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "instance": f"urn:request:{request_id(request)}",
        "error": {
            "message": problem.detail,
            "type": kind,
            "param": problem.param,
            "code": problem.code,
        },
    }
    if problem.errors:
        body["errors"] = [
            {"pointer" if where.startswith("#") else "parameter": where, "detail": detail}
            for where, detail in problem.errors
        ]
    headers = {**problem.headers, "x-request-id": request_id(request)}
    return JSONResponse(body, problem.status, headers, media_type="application/problem+json")
