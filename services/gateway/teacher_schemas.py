"""What goes over the wire about teachers: how one is asked for, sized and described.

A teacher's `id` is its name, which is also that of its Serve application. Times are Unix seconds.
"""

from typing import Annotated, Any, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.spec import AutoscaleSpec, TeacherSpec
from pipelines.teacher.contract import ScoreContract
from services.gateway.pool_states import PoolState
from services.store import Teacher

__all__ = ["CreateTeacher", "NewTeacher", "Replicas", "ScaleTeacher", "TeacherOfJob", "TeacherReply"]

_Replicas = Annotated[int, Field(ge=1, le=1024)]


class NewTeacher(TeacherSpec):
    """A teacher by its model: the `teacher` section of a job without `train`.

    `autoscale.finish_within_minutes` is for the jobs that use the pool; each brings its own.
    """

    @field_validator("train", mode="before")
    @classmethod
    def _no_training(cls, train: Any) -> Any:
        if train is not None:
            raise ValueError("train a teacher in a job, then give that job's id as `job`")
        return train


class TeacherOfJob(BaseModel):
    """The teacher that a job used, its fine-tuned one above all. Without a size, the pool keeps the one it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Annotated[str, Field(min_length=1, max_length=64)]
    replicas: _Replicas | None = None
    autoscale: AutoscaleSpec | None = None

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> Self:
        bounds = self.autoscale
        if bounds and self.replicas and not bounds.min_replicas <= self.replicas <= bounds.max_replicas:
            raise ValueError(
                f"replicas {self.replicas} lies outside autoscale.min_replicas {bounds.min_replicas} to "
                f"autoscale.max_replicas {bounds.max_replicas}"
            )
        return self


def _by_its_keys(data: Any) -> NewTeacher | TeacherOfJob:
    """Validate as the one of the two that is meant: a union of both would report the problems of both."""
    kind = TeacherOfJob if isinstance(data, dict) and "job" in data else NewTeacher
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        raise RequestValidationError(problems) from error


CreateTeacher = Annotated[NewTeacher | TeacherOfJob, BeforeValidator(_by_its_keys)]
"""Body of POST /v1/teachers."""


class ScaleTeacher(BaseModel):
    """Body of PATCH /v1/teachers/{name}/scale: `replicas` in mode fixed, min and max in mode auto."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["fixed", "auto"] | None = None
    replicas: _Replicas | None = None
    min_replicas: Annotated[int, Field(ge=0, le=1024)] | None = None
    max_replicas: _Replicas | None = None

    @property
    def bounds(self) -> list[str]:
        """Those of `min_replicas` and `max_replicas` that were given."""
        return [name for name in ("min_replicas", "max_replicas") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.mode is None and self.replicas is None and not self.bounds:
            raise ValueError("nothing to change: give mode, replicas, min_replicas or max_replicas")
        if self.replicas is not None and (self.mode == "auto" or self.bounds):
            raise ValueError("replicas is for mode fixed; mode auto takes min_replicas and max_replicas")
        if self.mode == "fixed" and self.bounds:
            raise ValueError(f"{self.bounds[0]} is for mode auto; mode fixed takes replicas")
        return self


class Replicas(BaseModel):
    """How many replicas there are, and should be."""

    target: int
    running: int | None
    """Null while Ray does not answer."""
    min: int | None
    """As `max`, of mode auto; null in mode fixed."""
    max: int | None


class ReplicaResources(BaseModel):
    """What one replica books."""

    cpus: float
    gpus: float


class TeacherReply(BaseModel):
    """A teacher: the model that scores, under which contract, and the pool that serves it."""

    id: str
    object: Literal["teacher"] = "teacher"
    name: str
    model: str
    revision: str | None
    contract: dict[str, Any]
    contract_fingerprint: str
    backend: str
    dtype: str
    max_length: int
    weights_version: int
    status: Literal["running", "starting", "failed", "scaled_to_zero", "idle", "unknown"]
    """idle: neither pinned nor used by an unfinished job; unknown: Ray does not answer."""
    message: str | None
    """Serve's, of a pool that is not running."""
    mode: Literal["fixed", "auto"]
    replicas: Replicas
    resources_per_replica: ReplicaResources
    tokens_per_batch: int | None
    pinned: bool
    jobs: list[str]
    backlog_tokens: int
    used_at: int | None

    @classmethod
    def of(cls, teacher: Teacher, *, backlogs: dict[str, int], state: PoolState | None, ray: bool) -> "TeacherReply":
        """The reply for a teacher as the store holds it.

        Args:
            teacher: the record.
            backlogs: tokens that each unfinished job which names it still wants.
            state: Serve's, None for an application that it does not know.
            ray: whether Serve was there to be asked.
        """
        contract = ScoreContract.from_dict(teacher.contract)
        auto, wanted = teacher.mode == "auto", teacher.pinned or bool(backlogs)
        status = _status(teacher, state, wanted=wanted, ray=ray)
        return cls(
            id=teacher.name,
            name=teacher.name,
            model=contract.model_id,
            revision=contract.revision,
            contract=teacher.contract,
            contract_fingerprint=contract.fingerprint,
            backend=contract.backend,
            dtype=contract.dtype,
            max_length=contract.max_length,
            weights_version=teacher.weights_version,
            status=status,
            message=(state.message or None) if state and status in {"starting", "failed"} else None,
            mode="auto" if auto else "fixed",
            replicas=Replicas(
                target=teacher.replicas if wanted else 0,
                running=(state.running if state else 0) if ray else None,
                min=teacher.min_replicas if auto else None,
                max=teacher.max_replicas if auto else None,
            ),
            resources_per_replica=ReplicaResources(cpus=teacher.cpus_per_replica, gpus=teacher.gpus_per_replica),
            tokens_per_batch=teacher.tokens_per_batch,
            pinned=teacher.pinned,
            jobs=list(backlogs),
            backlog_tokens=sum(backlogs.values()),
            used_at=None if teacher.used_at is None else int(teacher.used_at),
        )


def _status(
    teacher: Teacher, state: PoolState | None, *, wanted: bool, ray: bool
) -> Literal["running", "starting", "failed", "scaled_to_zero", "idle", "unknown"]:
    if not wanted:
        return "idle"
    if not teacher.replicas:
        return "scaled_to_zero"
    if not ray:
        return "unknown"
    if state and state.failed:
        return "failed"
    return "running" if state and state.running else "starting"
