"""No request body above a limit is read into memory; the refusal is a problem like every other.

Starlette's own limiter answers an announced length with plain text, outside every exception handler.
"""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.problems import Problem, answer

__all__ = ["BodyLimit"]


class BodyLimit:
    """ASGI middleware: a body of more than `max_bytes`, announced or streamed, is answered with 413.

    `below` holds other limits, by the prefix of the path.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, below: Mapping[str, int] | None = None) -> None:
        self._app, self._max_bytes, self._below = app, max_bytes, dict(below or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on unless it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = (limit for prefix, limit in self._below.items() if scope["path"].startswith(prefix))
        max_bytes = next(limits, self._max_bytes)
        detail = f"The request body is larger than {max_bytes} bytes."
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > max_bytes:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            problem = Problem(status, "request_entity_too_large", detail)
            await answer(Request(scope), problem)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                # Raised inside the app, where the exception handlers are.
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self._app(scope, counted, send)
