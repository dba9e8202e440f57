"""Ray's Jobs REST API, as far as a reconciler needs it: is it there, one job's state, submit, stop.

Enters: ids and an entrypoint that this package composed. Leaves: `RayJob`, None for a job that Ray does not
know, or `RayUnavailable` for everything that is no answer: no connection, a refused token, a server error, a
page that is not Ray's. The last one matters: taking a proxy's 404 for "this job does not exist" would make a
healthy driver a lost one.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httpx

from services.errors import RayUnavailable

__all__ = ["ENDED", "RayJob", "RayJobs"]

ENDED: Final = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
"""Ray's words for a job whose process is gone."""

_STATUSES: Final = ENDED | {"PENDING", "RUNNING"}
_TIMEOUT: Final = httpx.Timeout(10.0, connect=3.0)


@dataclass(frozen=True)
class RayJob:
    """What Ray says about a submission."""

    status: str
    message: str
    error_type: str | None = None

    @property
    def never_started(self) -> bool:
        """Ray gave up waiting for resources (after 15 minutes, by default): no process of the job ever ran."""
        return self.status == "FAILED" and self.error_type == "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"


class RayJobs:
    """Client of the dashboard at `dashboard_url`. Safe to share between threads."""

    def __init__(self, dashboard_url: str, token: str | None, *, transport: httpx.BaseTransport | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._url = dashboard_url
        # Environment proxies would see the token, and none is wanted between a gateway and its cluster.
        self._http = httpx.Client(
            base_url=dashboard_url, headers=headers, timeout=_TIMEOUT, transport=transport, trust_env=False
        )

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()

    def ping(self) -> None:
        """Return when Ray answers and accepts the token.

        Raises:
            RayUnavailable: otherwise, as all methods here.
        """
        self._json(self._send("GET", "/api/version"))

    def get(self, submission_id: str) -> RayJob | None:
        """The job's state, or None when Ray does not know it."""
        response = self._send("GET", f"/api/jobs/{submission_id}")
        if _unknown_job(response):
            return None
        details = self._json(response)
        status = details.get("status")
        if status not in _STATUSES:
            raise RayUnavailable(f"{self._url} says that job {submission_id} is {status!r}: not a Ray status")
        return RayJob(str(status), str(details.get("message") or ""), details.get("error_type"))

    def submit(self, entrypoint: str, *, submission_id: str, num_cpus: float, num_gpus: float) -> None:
        """Start a job. Ask `get` first: Ray answers a submission id that it knows with a server error."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "entrypoint_num_cpus": num_cpus,
            "entrypoint_num_gpus": num_gpus,
            "metadata": {"submitted_by": "dualdistill"},
        }
        self._json(self._send("POST", "/api/jobs/", body))

    def stop(self, submission_id: str) -> None:
        """Ask Ray to end a job (SIGTERM, then SIGKILL); one that it does not know is as good as stopped."""
        response = self._send("POST", f"/api/jobs/{submission_id}/stop")
        if not _unknown_job(response):
            self._json(response)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise RayUnavailable(f"{self._url} does not answer: {error}") from error

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise RayUnavailable(f"{self._url} refuses the token (HTTP {response.status_code})")
        if not response.is_success:
            end = " ".join(response.text.split())[-300:]  # Ray sends tracebacks: the end says it
            raise RayUnavailable(f"{self._url} answered HTTP {response.status_code}: {end}")
        try:
            answer = response.json()
        except ValueError as error:
            raise RayUnavailable(f"{self._url} did not answer with JSON: is it Ray's dashboard?") from error
        if not isinstance(answer, dict):
            raise RayUnavailable(f"{self._url} answered with {type(answer).__name__}: is it Ray's dashboard?")
        return answer


def _unknown_job(response: httpx.Response) -> bool:
    return response.status_code == HTTPStatus.NOT_FOUND and "does not exist" in response.text
