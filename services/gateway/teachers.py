"""Teachers by name: what they are and how busy, and the pools that stay when no job needs them.

A POST pins a teacher, a DELETE unpins it; its pool goes as soon as no unfinished job needs it. All of it is written to
the store and made true by the reconciler, in seconds where the cluster has room: a size is accepted, not awaited.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response

from services.errors import StateConflict
from services.gateway.context import Context, GatewayContext
from services.gateway.new_teachers import teacher_by_model, teacher_of_job
from services.gateway.problems import Problem, pointer
from services.gateway.schemas import Page, page
from services.gateway.teacher_schemas import CreateTeacher, ScaleTeacher, TeacherOfJob, TeacherReply
from services.store import Teacher, TeacherTable

__all__ = ["router"]

router = APIRouter(prefix="/v1/teachers", tags=["teachers"])


@router.get("")
def list_teachers(
    context: Context,
    after: Annotated[str | None, Query(max_length=255)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    wanted: bool | None = None,
) -> Page[TeacherReply]:
    """Teachers by name; with `wanted`, those that are in use or pinned, or those that are not."""
    table = TeacherTable(context.store)
    uses = table.uses()
    found = [
        teacher
        for teacher in table.all()
        if (after is None or teacher.name > after)
        and (wanted is None or wanted == (teacher.pinned or teacher.name in uses))
    ][: limit + 1]
    return page(_replies(context, found, uses), [teacher.name for teacher in found], limit)


@router.get("/{name}")
def get_teacher(name: str, context: Context) -> TeacherReply:
    """One teacher."""
    return _reply(context, TeacherTable(context.store).get(name))


@router.post("", status_code=HTTPStatus.CREATED)
def create_teacher(body: Annotated[CreateTeacher, Body()], response: Response, context: Context) -> TeacherReply:
    """Pin a teacher, by its model or by a job that used it. Sending the same again changes nothing."""
    if isinstance(body, TeacherOfJob):
        teacher = teacher_of_job(body, context.store)
    else:
        teacher = teacher_by_model(body, context.settings)
    pinned = TeacherTable(context.store).pin(teacher)
    response.headers["location"] = f"{router.prefix}/{pinned.name}"
    return _reply(context, pinned)


@router.patch("/{name}/scale", status_code=HTTPStatus.ACCEPTED)
def scale_teacher(name: str, body: ScaleTeacher, context: Context) -> TeacherReply:
    """Size a pool: a number of replicas, or bounds within which it follows the backlog. Jobs leave it alone then."""
    return _reply(context, TeacherTable(context.store).resize_by(name, lambda teacher: _size(teacher, body)))


@router.delete("/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_teacher(name: str, context: Context) -> None:
    """Unpin a teacher: its pool goes as soon as no unfinished job needs it."""
    TeacherTable(context.store).unpin(name)


def _size(teacher: Teacher, body: ScaleTeacher) -> Mapping[str, Any]:
    if (body.mode or teacher.mode) == "fixed":
        if body.bounds:
            raise StateConflict(
                f"teacher {teacher.name!r} has mode fixed; to let it follow the backlog, "
                f'send "mode": "auto" with {" and ".join(body.bounds)}'
            )
        replicas = body.replicas or max(teacher.replicas, 1)
        return {"mode": "fixed", "replicas": replicas, "min_replicas": 0, "max_replicas": replicas}
    if body.replicas is not None:
        raise StateConflict(
            f"teacher {teacher.name!r} has mode auto, which sets replicas by itself; to fix them, "
            f'send "mode": "fixed" with replicas, else min_replicas and max_replicas'
        )
    least = teacher.min_replicas if body.min_replicas is None else body.min_replicas
    most = teacher.max_replicas if body.max_replicas is None else body.max_replicas
    if least > most:
        field = body.bounds[0] if body.bounds else "mode"
        detail = f"min_replicas {least} is above max_replicas {most}"
        errors = [(pointer([field]), detail)]
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", f"{field}: {detail}", param=field, errors=errors
        )
    replicas = min(max(teacher.replicas, least), most)
    return {"mode": "auto", "replicas": replicas, "min_replicas": least, "max_replicas": most}


def _reply(context: GatewayContext, teacher: Teacher) -> TeacherReply:
    (reply,) = _replies(context, [teacher], TeacherTable(context.store).uses())
    return reply


def _replies(
    context: GatewayContext, teachers: list[Teacher], uses: Mapping[str, dict[str, int]]
) -> list[TeacherReply]:
    states = context.pool_states.get() if teachers else None
    return [
        TeacherReply.of(
            teacher,
            backlogs=uses.get(teacher.name, {}),
            state=(states or {}).get(teacher.name),
            ray=states is not None,
        )
        for teacher in teachers
    ]
