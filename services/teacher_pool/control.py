"""Desired teachers -> declarative Serve config -> the Ray dashboard's REST API.

Enters: the teachers that running jobs need, as the store says. Leaves: exactly those as Serve applications, one each,
named for humans. Declarative, so that applying twice is harmless and replica counts or weights change in place;
`serve.run` would restart every replica.
"""

from collections.abc import Sequence
from typing import Any

import httpx

from services.errors import RayUnavailable, TeacherPoolError
from services.store import Teacher

__all__ = ["ServeControl", "application_name", "render"]

_IMPORT_PATH = "services.teacher_pool.replica:app"
_APPLICATIONS = "/api/serve/applications/"


def application_name(contract_fingerprint: str) -> str:
    """The Serve application of the teacher with that contract: jobs with one contract share one pool."""
    return f"teacher-{contract_fingerprint[:12]}"


def render(teachers: Sequence[Teacher]) -> dict[str, Any]:
    """The multi-application Serve config of `teachers`. A pure function: equal teachers give an equal config."""
    return {
        "proxy_location": "Disabled",
        "applications": [_application(teacher) for teacher in sorted(teachers, key=lambda teacher: teacher.name)],
    }


def _application(teacher: Teacher) -> dict[str, Any]:
    return {
        "name": teacher.name,
        "route_prefix": None,
        "import_path": _IMPORT_PATH,
        "deployments": [
            {
                "name": "TeacherReplica",
                "num_replicas": teacher.replicas,
                "max_ongoing_requests": 2,
                "graceful_shutdown_timeout_s": 60,
                "ray_actor_options": {
                    "num_cpus": teacher.cpus_per_replica,
                    "num_gpus": teacher.gpus_per_replica,
                },
                "user_config": {
                    "model_dir": teacher.model_dir,
                    "contract": teacher.contract,
                    "tokens_per_batch": teacher.tokens_per_batch,
                    "calibrations_dir": teacher.calibrations_dir,
                    "num_cpus": teacher.cpus_per_replica,
                    "num_gpus": teacher.gpus_per_replica,
                    "weights_version": teacher.weights_version,
                },
            }
        ],
    }


class ServeControl:
    """Applies desired teachers to one Ray cluster, over HTTP only. The cluster's Serve belongs to dualdistill."""

    def __init__(self, dashboard_url: str, token: str | None, *, transport: httpx.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=dashboard_url, headers=headers, timeout=30, transport=transport, trust_env=False
        )
        self._applied: dict[str, Any] | None = None

    def apply(self, teachers: Sequence[Teacher]) -> bool:
        """Make `teachers` what runs; True if the cluster had to be told.

        Raises:
            RayUnavailable: the dashboard does not answer.
            TeacherPoolError: Serve refuses the config.
        """
        wanted = render(teachers)
        names = {application["name"] for application in wanted["applications"]}
        running = self._running()
        if (self._applied == wanted and names <= running) or (not names and not running):
            return False
        response = self._request("PUT", json=wanted)
        if response.is_error:
            raise TeacherPoolError(
                f"Serve refused the teachers {sorted(names)}: {response.status_code} {response.text[:500]}"
            )
        self._applied = wanted
        return True

    def _running(self) -> set[str]:
        response = self._request("GET")
        if response.is_error:
            raise RayUnavailable(f"the Ray dashboard answered {response.status_code} to GET {_APPLICATIONS}")
        return set(response.json().get("applications", {}))

    def _request(self, method: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, _APPLICATIONS, **options)
        except httpx.HTTPError as error:
            raise RayUnavailable(f"the Ray dashboard at {self._http.base_url} does not answer: {error!r}") from error
