"""Desired teachers -> declarative Serve config -> the Ray dashboard's REST API.

Enters: the teachers that running jobs need, as the store says. Leaves: exactly those as Serve applications, one each,
named for humans. Declarative, so that applying twice is harmless and replica counts or weights change in place;
`serve.run` would restart every replica.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from pipelines.teacher.contract import ScoreContract
from services.errors import RayUnavailable, TeacherPoolError
from services.settings import Settings
from services.store import Teacher
from services.teacher_pool.messages import DEPLOYMENT_NAME

__all__ = ["PoolSettings", "ServeControl", "application_name", "render"]

_IMPORT_PATH = "services.teacher_pool.replica:app"
_ROUTER = "services.teacher_pool.routing:ShortestQueue"
_MOST_CALLS = 64
"""In one replica: those of several jobs, which take turns there, and of people, who go first. Jobs bound their own."""
_APPLICATIONS = "/api/serve/applications/"


def application_name(contract: ScoreContract) -> str:
    """The Serve application of the teacher with that contract: jobs with one contract share one pool.

    The last part of the model's id, for people, and the start of the contract's fingerprint, for uniqueness.
    """
    model = re.sub(r"[^a-z0-9]+", "-", contract.model_id.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    return f"{model[:40].strip('-') or 'teacher'}-{contract.fingerprint[:8]}"


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """What all pools of a cluster share."""

    proxy_host: str
    proxy_port: int
    hang_after_s: float

    @classmethod
    def of(cls, settings: Settings) -> "PoolSettings":
        """Those of the operator."""
        port = httpx.URL(settings.serve_url).port or 80
        return cls(proxy_host=settings.serve_host, proxy_port=port, hang_after_s=settings.hang_after_s)


def render(teachers: Sequence[Teacher], pools: PoolSettings) -> dict[str, Any]:
    """The multi-application Serve config of `teachers`. A pure function: equal teachers give an equal config.

    A pool of no replicas is no application: Serve knows no deployment with none.
    """
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": pools.proxy_host, "port": pools.proxy_port},
        "applications": [
            _application(teacher, pools)
            for teacher in sorted(teachers, key=lambda teacher: teacher.name)
            if teacher.replicas
        ],
    }


def _application(teacher: Teacher, pools: PoolSettings) -> dict[str, Any]:
    return {
        "name": teacher.name,
        "route_prefix": f"/{teacher.name}",
        "import_path": _IMPORT_PATH,
        "deployments": [
            {
                "name": DEPLOYMENT_NAME,
                "num_replicas": teacher.replicas,
                # New weights load in place; by fifths, old replicas would go on with scores that nobody takes.
                "rolling_update_percentage": 1.0,
                "max_ongoing_requests": _MOST_CALLS,
                "request_router_config": {"request_router_class": _ROUTER},
                "health_check_period_s": 5,
                "health_check_timeout_s": 30,
                # Longer than any call that is not hung: a replica that has to go finishes what it has begun.
                "graceful_shutdown_timeout_s": pools.hang_after_s + 30,
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
                    "hang_after_s": pools.hang_after_s,
                },
            }
        ],
    }


class ServeControl:
    """Applies desired teachers to one Ray cluster, over HTTP only. The cluster's Serve belongs to dualdistill."""

    def __init__(
        self,
        dashboard_url: str,
        token: str | None,
        pools: PoolSettings,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=dashboard_url, headers=headers, timeout=30, transport=transport, trust_env=False
        )
        self._pools = pools
        self._applied: dict[str, Any] | None = None

    def apply(self, teachers: Sequence[Teacher]) -> bool:
        """Make `teachers` what runs; True if the cluster had to be told.

        Raises:
            RayUnavailable: the dashboard does not answer.
            TeacherPoolError: Serve refuses the config.
        """
        wanted = render(teachers, self._pools)
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
