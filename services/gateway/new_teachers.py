"""A teacher that a user names becomes a record for the store: its folder found, its contract made.

Enters: a validated body. Leaves: a `Teacher`, or a 422 that names the field. Paths follow the rules of a job's paths. A
model of the hub is downloaded here, which may take longer than a client waits: the same request sent again finds it.
"""

import dataclasses
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.model_files import resolve_model
from pipelines.spec import AutoscaleSpec
from pipelines.teacher.contract import ScoreContract
from services.data_roots import OutsideDataRoots, resolve_model_folder
from services.errors import StateConflict
from services.gateway.problems import Problem, pointer
from services.gateway.teacher_schemas import NewTeacher, TeacherOfJob
from services.settings import Settings
from services.store import Store, Teacher, TeacherTable
from services.teacher_pool.control import application_name

__all__ = ["teacher_by_model", "teacher_of_job"]

_room = threading.BoundedSemaphore(4)
"""Models that are read at once in this process: each holds one of the threads that answer everybody."""


def teacher_by_model(body: NewTeacher, settings: Settings) -> Teacher:
    """The teacher whose model the body names.

    Raises:
        Problem: 422, the model cannot be used as asked; 429, others are being read.
    """
    with _reading_models():
        folder = _folder(body, settings)
        contract = _contract(body, folder)
    auto = body.autoscale
    return Teacher(
        name=application_name(contract),
        model_dir=str(folder),
        contract=contract.to_dict(),
        mode="auto" if auto else "fixed",
        replicas=body.replicas,
        min_replicas=auto.min_replicas if auto else 0,
        max_replicas=auto.max_replicas if auto else body.replicas,
        cpus_per_replica=body.cpus_per_replica,
        gpus_per_replica=body.gpus_per_replica,
        tokens_per_batch=body.tokens_per_batch,
        calibrations_dir=str(settings.root / "calibrations"),
    )


def teacher_of_job(body: TeacherOfJob, store: Store) -> Teacher:
    """The teacher that the job used, in the size that the body asks for.

    Raises:
        JobNotFound: there is none of that id.
        StateConflict: the job has not asked for a pool.
    """
    name = store.get_job(body.job).teacher_name
    if name is None:
        raise StateConflict(
            f"job {body.job} has asked for no teacher pool: it has not come that far, or all its scores were known"
        )
    return dataclasses.replace(TeacherTable(store).get(name), **_size(body.replicas, body.autoscale))


def _size(replicas: int | None, auto: AutoscaleSpec | None) -> dict[str, Any]:
    if auto:
        return {
            "mode": "auto",
            "replicas": replicas or max(auto.min_replicas, 1),
            "min_replicas": auto.min_replicas,
            "max_replicas": auto.max_replicas,
        }
    if replicas:
        return {"mode": "fixed", "replicas": replicas, "min_replicas": 0, "max_replicas": replicas}
    return {}


def _folder(body: NewTeacher, settings: Settings) -> Path:
    try:
        resolve_model_folder(body.model.id, settings.data_roots)
        return resolve_model(body.model.id, body.model.revision, roots=settings.data_roots)
    except (OutsideDataRoots, PipelineError) as error:
        raise _refusal(error, "model.id") from error


def _contract(body: NewTeacher, folder: Path) -> ScoreContract:
    from pipelines.job_teacher import teacher_contract  # noqa: PLC0415 - torch: only who makes a contract needs it

    try:
        return teacher_contract(
            body,
            folder,
            model_id=body.model.id,
            revision=body.model.revision,
            device_type="cuda" if body.gpus_per_replica > 0 else "cpu",
        )
    except PipelineError as error:
        named = re.match(r"teacher\.(\w+)", str(error))
        raise _refusal(error, named[1] if named else "model.id") from error


def _refusal(error: OutsideDataRoots | PipelineError, field: str) -> Problem:
    detail = str(error)
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        error.reason,
        f"{field}: {detail}",
        param=field,
        errors=[(pointer(field.split(".")), detail)],
    )


@contextmanager
def _reading_models() -> Iterator[None]:
    if not _room.acquire(blocking=False):
        detail = "Other teachers' models are being read; try again soon."
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", detail, headers={"retry-after": "5"})
    try:
        yield
    finally:
        _room.release()
