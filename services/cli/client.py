"""GatewayClient: the REST API as the command line needs it.

Enters: specs and job ids. Leaves: plain JSON. A refusal becomes a `RequestRefused` that names fields.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from services.errors import ServiceError

__all__ = ["GatewayClient", "RequestRefused"]

_JOBS = "/v1/distillation/jobs"
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

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(f"the gateway at {self._http.base_url} does not answer: {error}") from error
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


def _field(item: dict[str, str]) -> str:
    """The dotted field of a problem in the body, or the name of a parameter of the query."""
    if "parameter" in item:
        return item["parameter"]
    parts = item["pointer"].removeprefix("#/").split("/")
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in parts)
