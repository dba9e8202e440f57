"""GatewayClient: the REST API as the command line needs it.

Enters: specs, ids of jobs, names of teachers. Leaves: plain JSON. A refusal becomes a `RequestRefused` that names
fields.
"""

from collections.abc import Iterator
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from services.errors import ServiceError

__all__ = ["GatewayClient", "RequestRefused"]

_JOBS = "/v1/distillation/jobs"
_TEACHERS = "/v1/teachers"
_READING_A_MODEL_S = 1800.0
"""The gateway may have to download a teacher's model before it answers."""
_RERANKING_S = 90.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class RequestRefused(ServiceError):  # noqa: N818 - the gateway's answer, not a failure of ours
    """The gateway said no; `problems` is a list of (field, what is wrong)."""

    def __init__(self, status: int, detail: str, problems: list[tuple[str, str]]) -> None:
        self.status = status
        self.problems = problems
        super().__init__(f"{status}: {detail}")


class GatewayClient:
    """Talks to one gateway."""

    def __init__(self, url: str) -> None:
        # A proxy of the environment may stand before a gateway elsewhere, never before one on this machine.
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=httpx.URL(url).host not in _LOOPBACK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Create a job; returns it."""
        return self._json("POST", _JOBS, json={"spec": spec})

    def job(self, job_id: str) -> dict[str, Any]:
        """One job as it is now."""
        return self._json("GET", f"{_JOBS}/{job_id}")

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs."""
        found: list[dict[str, Any]] = self._json("GET", _JOBS, params={"limit": limit})["data"]
        return found

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for a job's end; returns it."""
        return self._json("POST", f"{_JOBS}/{job_id}/cancel")

    def events(self, job_id: str, after: str | None = None) -> Iterator[dict[str, Any]]:
        """All events after the one with id `after`, oldest first."""
        while True:
            params = {"limit": 100} | ({"after": after} if after else {})
            page = self._json("GET", f"{_JOBS}/{job_id}/events", params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["data"][-1]["id"]

    def teachers(self) -> list[dict[str, Any]]:
        """All teachers, by name."""
        found: list[dict[str, Any]] = []
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = self._json("GET", _TEACHERS, params=params)
            found += page["data"]
            if not page["has_more"]:
                return found
            params["after"] = page["last_id"]

    def teacher(self, name: str) -> dict[str, Any]:
        """One teacher as it is now."""
        return self._json("GET", _teacher(name))

    def add_teacher(self, body: dict[str, Any]) -> dict[str, Any]:
        """Pin a teacher; returns it."""
        return self._json("POST", _TEACHERS, json=body, timeout=_READING_A_MODEL_S)

    def scale_teacher(self, name: str, size: dict[str, Any]) -> dict[str, Any]:
        """Size a teacher's pool; returns the teacher."""
        return self._json("PATCH", f"{_teacher(name)}/scale", json=size)

    def remove_teacher(self, name: str) -> None:
        """Unpin a teacher."""
        self._json("DELETE", _teacher(name))

    def rerank(self, model: str, query: str, documents: list[str]) -> dict[str, Any]:
        """Rank documents by a teacher."""
        body = {"model": model, "query": query, "documents": documents}
        return self._json("POST", "/v2/rerank", json=body, timeout=_RERANKING_S)

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(f"the gateway at {self._http.base_url} does not answer: {error}") from error
        if response.status_code == HTTPStatus.NO_CONTENT:
            return {}
        try:
            body: dict[str, Any] = response.json()
        except ValueError as error:
            raise ServiceError(
                f"what answers at {self._http.base_url} is no dualdistill gateway: {response.status_code}, not JSON"
            ) from error
        if response.is_error:
            problems = [(_field(item), item["detail"]) for item in body.get("errors", [])]
            raise RequestRefused(response.status_code, body.get("detail", body.get("title", "")), problems)
        return body


def _teacher(name: str) -> str:
    return f"{_TEACHERS}/{quote(name, safe='')}"  # what a user typed must not become another path


def _field(item: dict[str, str]) -> str:
    """The dotted field of a problem in the body, or the name of a parameter of the query."""
    if "parameter" in item:
        return item["parameter"]
    parts = item["pointer"].removeprefix("#/").split("/")
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in parts)
