"""What goes over the wire, in OpenAI's fine-tuning shape: the request body, job and event replies, pages.

Times are Unix seconds. A list is `{"object": "list", "data": [...], "first_id", "last_id", "has_more"}`, and
`after=` the last id of a page gives the next one.
"""

import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipelines.spec import DistillationSpec, SpecError, parse_spec
from services.gateway.problems import Problem, pointer
from services.store import Event, Job

__all__ = ["Artifact", "CreateJob", "EventReply", "JobReply", "Page", "event_number", "page"]

_EVENT_PREFIX = "ddevent-"


def _spec_or_problem(data: Any) -> DistillationSpec:
    """The same validation as for YAML and the CLI; a refusal points into the request body."""
    try:
        spec = parse_spec(data)
    except SpecError as error:
        problems = [(() if path == "spec" else tuple(path.split(".")), detail) for path, detail in error.problems]
    else:
        problems = [(path, "must be a finite number") for path in _not_finite(spec.model_dump(), ())]
        if not problems:
            return spec
    named = [(".".join(str(part) for part in parts) or "spec", detail) for parts, detail in problems]
    raise Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        SpecError.reason,
        "; ".join(f"{path}: {detail}" for path, detail in named),
        param=named[0][0],
        errors=[(pointer(["spec", *parts]), detail) for parts, detail in problems],
    )


def _not_finite(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _not_finite(item, (*path, str(position)))


MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class CreateJob(BaseModel):
    """Body of POST /v1/distillation/jobs."""

    model_config = ConfigDict(extra="forbid")

    spec: Annotated[DistillationSpec, BeforeValidator(_spec_or_problem)]
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}


class JobReply(BaseModel):
    """A distillation job."""

    id: str
    object: Literal["distillation.job"] = "distillation.job"
    name: str
    status: str
    reason: str | None
    message: str | None
    phase: str | None
    phase_history: list[dict[str, Any]]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    attempt: int
    teacher: str | None
    spec: dict[str, Any]
    metadata: dict[str, str]
    created_at: int
    started_at: int | None
    finished_at: int | None
    cancel_requested_at: int | None

    @classmethod
    def of(cls, job: Job) -> "JobReply":
        """The reply for a job as the store holds it."""
        return cls(
            id=job.id,
            name=job.name,
            status=job.status,
            reason=job.reason,
            message=job.message,
            phase=job.phase,
            phase_history=job.phase_history,
            progress=job.progress,
            result=job.result,
            error=job.error,
            attempt=job.attempt,
            teacher=job.teacher_name,
            spec=job.spec,
            metadata=job.metadata,
            created_at=int(job.created_at),
            started_at=_whole(job.started_at),
            finished_at=_whole(job.finished_at),
            cancel_requested_at=_whole(job.cancel_requested_at),
        )


class EventReply(BaseModel):
    """Something that happened to a job; `id` is the cursor to continue after it."""

    id: str
    object: Literal["distillation.job.event"] = "distillation.job.event"
    job_id: str
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: Event) -> "EventReply":
        """The reply for an event as the store holds it."""
        return cls(
            id=f"{_EVENT_PREFIX}{event.id}",
            job_id=event.job_id,
            created_at=event.created_at,
            level=event.level,
            type=event.type,
            message=event.message,
            data=event.data,
        )


def event_number(event_id: str, *, param: str) -> int:
    """The store's number of an event id that a client sends back.

    Raises:
        Problem: 422, it is not an event id.
    """
    digits = event_id.removeprefix(_EVENT_PREFIX)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        detail = f"{param}: {event_id[:80]!r} is not the id of an event"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", detail, param=param, errors=[(param, detail)])
    return int(digits)


class Artifact(BaseModel):
    """A file that a job made; `id` is its name, which its download address ends with."""

    id: str
    object: Literal["distillation.job.artifact"] = "distillation.job.artifact"
    name: str
    bytes: int
    created_at: int


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page(items: list[Item], ids: list[str], limit: int) -> Page[Item]:
    """Cut a list that was fetched with one item more than `limit`."""
    shown, names = items[:limit], ids[:limit]
    return Page[Item](
        data=shown,
        first_id=names[0] if names else None,
        last_id=names[-1] if names else None,
        has_more=len(items) > limit,
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
