"""A pool as Serve sees it: its handle, its running replicas, and how to wait for the first of them.

Enters: the name of a Serve application. Leaves: a `Pool`. The driver asks Serve's controller, which may itself be
restarting: then the last answer holds.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from services.errors import TeacherNotDeployable
from services.teacher_pool.client import Pool
from services.teacher_pool.messages import DEPLOYMENT_NAME

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["connect_pool", "wait_until_running"]

_WORD_EVERY_S = 60.0
_LOOK_EVERY_S = 2.0
_log = logging.getLogger(__name__)


def connect_pool(name: str, *, check: Callable[[], None], still_waiting: Callable[[str], None]) -> Pool:
    """The pool of the application `name`; the other arguments are those of `wait_until_running`."""
    handle: DeploymentHandle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=name)
    replicas = _Replicas(name)

    def wait() -> None:
        if not replicas():
            wait_until_running(name, check=check, still_waiting=still_waiting)

    def reloading() -> Iterator[None]:
        for _, failed, message in _looks(name, check=check, still_waiting=still_waiting):
            if failed:
                raise TeacherNotDeployable(f"teacher pool {name} did not take its new weights: {message}")
            yield

    return Pool(name=name, handle=handle, replicas=replicas, wait=wait, reloading=reloading)


def wait_until_running(name: str, *, check: Callable[[], None], still_waiting: Callable[[str], None]) -> int:
    """Wait until the application `name` has a running replica; returns how many it has.

    There is no deadline: a pool may wait for CPUs that another job holds, and Serve itself gives up on replicas that
    cannot start.

    Args:
        name: the Serve application.
        check: called between looks; may raise to stop waiting (cancellation).
        still_waiting: told once a minute what Serve says.

    Raises:
        TeacherNotDeployable: Serve gave up on the application; says what Serve says.
    """
    for running, failed, message in _looks(name, check=check, still_waiting=still_waiting):
        if running:
            return running
        if failed:
            raise TeacherNotDeployable(f"teacher pool {name} failed to deploy: {message}")
    raise AssertionError("looking at an application has no end")


def _looks(
    name: str, *, check: Callable[[], None], still_waiting: Callable[[str], None]
) -> Iterator[tuple[int, bool, str]]:
    """What `_look` sees, twice a second; once a minute it is passed on."""
    next_word = time.monotonic() + _WORD_EVERY_S
    while True:
        check()
        try:
            found = _look(name)
        except (RayError, RayServeException) as error:
            found = 0, False, f"Serve's controller does not answer: {error}"
        yield found
        if time.monotonic() >= next_word:
            still_waiting(found[2])
            next_word += _WORD_EVERY_S
        time.sleep(0.5)


def _look(name: str) -> tuple[int, bool, str]:
    """(running replicas, whether Serve gave up, what it says)."""
    application = serve.status().applications.get(name)
    if application is None:
        return 0, False, "Serve does not know it yet"
    deployment = application.deployments.get(DEPLOYMENT_NAME)
    running = int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0
    message = (deployment.message if deployment else "") or application.message or str(application.status)
    return running, application.status == "DEPLOY_FAILED", message


class _Replicas:
    """The number of running replicas, looked up at most every two seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running = 0
        self._next_look = 0.0

    def __call__(self) -> int:
        if time.monotonic() >= self._next_look:
            try:
                self._running = _look(self._name)[0]
            except (RayError, RayServeException) as error:
                _log.warning("Serve's controller does not answer, the last number of replicas holds: %r", error)
            self._next_look = time.monotonic() + _LOOK_EVERY_S
        return self._running
