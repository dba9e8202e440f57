"""One query and its documents to a teacher's replicas and back, over the HTTP proxy of Ray Serve.

Enters: a teacher's name, texts. Leaves: finite raw logits with the version of the weights and the contract that made
them, or a problem that says whose fault it was and when to come back. Bounded: so many at once, so long each.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from services.gateway.problems import Problem

__all__ = ["PoolClient", "Scores"]

_MOST_AT_ONCE = 64
_TIMEOUT_S = 60.0
_TOUCH_EVERY_S = 5.0
_STARTING_AGAIN_S = "5"


@dataclass(frozen=True)
class Scores:
    """A replica's answer."""

    logits: list[float]
    """Finite, one per document."""
    weights_version: int
    contract: str


class PoolClient:
    """Client of the proxy at `serve_url`; belongs to one event loop."""

    def __init__(self, serve_url: str, token: str | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=serve_url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_TIMEOUT_S, connect=5.0),
            # A connection that is kept may be closed by the proxy in the moment in which it is used again.
            limits=httpx.Limits(max_keepalive_connections=0),
            transport=transport,
            trust_env=False,  # a proxy of the environment would see the token
        )
        self._at_once = 0
        self._touched: dict[str, float] = {}

    async def close(self) -> None:
        """Close pooled connections."""
        await self._http.aclose()

    @contextmanager
    def room(self) -> Iterator[None]:
        """Be one of those that are served.

        Raises:
            Problem: 429, there are enough of them.
        """
        if self._at_once >= _MOST_AT_ONCE:
            detail = f"{_MOST_AT_ONCE} requests are being reranked here already."
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", detail, headers={"retry-after": "1"})
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1

    def due_for_touch(self, name: str) -> bool:
        """Whether to write down again that somebody uses a pool: not for every request of a busy one."""
        now = time.monotonic()
        if now - self._touched.get(name, -math.inf) < _TOUCH_EVERY_S:
            return False
        self._touched[name] = now
        return True

    async def score(self, name: str, query: str, documents: list[str]) -> Scores:
        """Raw logits of `documents` for `query`.

        Raises:
            Problem: 422 of what the teacher cannot read, 429 when it is busy, 503 when it is not there, 504 when it
                takes too long, 502 when it is broken.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                response = await self._http.post(f"/{name}", json={"query": query, "documents": documents})
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise starting(name, "the HTTP proxy of the pools does not answer") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            detail = f"teacher {name!r} did not answer within {_TIMEOUT_S:.0f} s"
            raise Problem(HTTPStatus.GATEWAY_TIMEOUT, "teacher_timeout", detail) from error
        except httpx.HTTPError as error:
            raise _broken(name, f"broke the connection off: {type(error).__name__}") from error
        if response.status_code != HTTPStatus.OK:
            raise _refusal(name, response)
        return _scores(name, response, len(documents))


def starting(name: str, why: str) -> Problem:
    """503: the teacher is wanted, and not there yet."""
    detail = f"teacher {name!r} has no running replica yet: {why}"
    headers = {"retry-after": _STARTING_AGAIN_S}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "teacher_starting", detail, headers=headers)


def _broken(name: str, what: str) -> Problem:
    return Problem(HTTPStatus.BAD_GATEWAY, "teacher_broken", f"teacher {name!r} {what}")


def _refusal(name: str, response: httpx.Response) -> Problem:
    match response.status_code:
        case HTTPStatus.TOO_MANY_REQUESTS:
            headers = {"retry-after": response.headers.get("retry-after", "1")}
            return Problem(HTTPStatus.TOO_MANY_REQUESTS, "teacher_busy", f"teacher {name!r} is busy", headers=headers)
        case HTTPStatus.NOT_FOUND | HTTPStatus.SERVICE_UNAVAILABLE:
            return starting(name, f"the HTTP proxy of the pools answered {response.status_code}")
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            told = _json(response)
            if told.get("reason") == "invalid_dataset":  # of texts, as in a job
                detail = str(told.get("error"))
                return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", detail, param="query")
            return _broken(name, f"cannot score: {told.get('error')}")
        case HTTPStatus.UNAUTHORIZED:
            return _broken(name, "refuses this gateway's token")
    return _broken(name, f"answered {response.status_code}")


def _scores(name: str, response: httpx.Response, count: int) -> Scores:
    answer = _json(response)
    logits, version, contract = (answer.get(key) for key in ("logits", "weights_version", "contract"))
    if not (isinstance(logits, list) and len(logits) == count and isinstance(version, int)):
        raise _broken(name, f"answered something else than {count} logits")
    for index, logit in enumerate(logits):
        if not (isinstance(logit, int | float) and math.isfinite(logit)):
            raise _broken(name, f"gave document {index} the logit {logit}: its weights or its dtype are broken")
    return Scores([float(logit) for logit in logits], version, str(contract))


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:  # a page of some proxy: as good as an empty answer, and told as one
        return {}
    return answer if isinstance(answer, dict) else {}
