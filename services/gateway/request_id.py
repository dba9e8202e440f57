"""One id per request, on every answer and in the log: the client's own `x-request-id` when it is harmless."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestId", "request_id"]

_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KEY = "dualdistill.request_id"


def request_id(request: Request) -> str:
    """The id of a request that came through the middleware."""
    return str(request.scope.get(_KEY, "unknown"))


class RequestId:
    """ASGI middleware that gives each HTTP request its id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and mark its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope[_KEY] = given if _HARMLESS.fullmatch(given) else f"req-{uuid.uuid4().hex}"

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = scope[_KEY]
            await send(message)

        await self._app(scope, receive, marked)
