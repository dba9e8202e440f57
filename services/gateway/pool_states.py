"""What Serve says of the teacher pools: how many replicas run, what it is waiting for, why it gave up.

Enters: the Ray dashboard's REST API. Leaves: a `PoolState` per application, or None for all while Ray does not answer:
that is no reason to refuse an answer about teachers. Asked at most every two seconds, however many people look.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from services.teacher_pool.messages import DEPLOYMENT_NAME

__all__ = ["PoolState", "PoolStates"]

_log = logging.getLogger(__name__)

_APPLICATIONS = "/api/serve/applications/"
_TIMEOUT = httpx.Timeout(5.0, connect=2.0)


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """One application."""

    status: str
    """Serve's word: DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED, DELETING, NOT_STARTED."""
    message: str
    running: int
    """Replicas that take calls."""

    @property
    def failed(self) -> bool:
        """Serve gave up."""
        return self.status == "DEPLOY_FAILED"


class PoolStates:
    """Client of the dashboard at `dashboard_url`. Safe to share between threads."""

    def __init__(
        self,
        dashboard_url: str,
        token: str | None,
        *,
        max_age_s: float = 2.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=dashboard_url, headers=headers, timeout=_TIMEOUT, transport=transport, trust_env=False
        )
        self._max_age_s = max_age_s
        self._asking = threading.Lock()
        self._known: dict[str, PoolState] | None = None
        self._known_at: float | None = None

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()

    def get(self) -> Mapping[str, PoolState] | None:
        """Application -> its state; None when Ray does not answer.

        While another thread asks, the last answer holds: a dashboard that hangs must not hold all threads.
        """
        if not self._asking.acquire(blocking=self._known_at is None):
            return self._known
        try:
            if self._known_at is None or time.monotonic() - self._known_at >= self._max_age_s:
                self._known = self._ask()
                self._known_at = time.monotonic()
            return self._known
        finally:
            self._asking.release()

    def _ask(self) -> dict[str, PoolState] | None:
        try:
            answer = self._http.get(_APPLICATIONS).raise_for_status().json()
            return {name: _state(application) for name, application in answer["applications"].items()}
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
            _log.debug("Serve does not say how the pools are: %r", error)  # the reconciler warns
            return None


def _state(application: dict[str, Any]) -> PoolState:
    deployment = application.get("deployments", {}).get(DEPLOYMENT_NAME, {})
    running = sum(replica["state"] == "RUNNING" for replica in deployment.get("replicas", []))
    message = deployment.get("message") or application.get("message") or ""
    return PoolState(status=application["status"], message=message, running=running)
