"""The tables, typed. Migrations build them; a test holds the two to be the same.

`JobRow.version` is SQLAlchemy's version counter: every UPDATE of a job carries `WHERE id = ? AND version = ?`
and is refused when somebody else changed the row in between. That is the compare-and-set under each status
transition. JSON is kept as text-faithful JSON on PostgreSQL too (not JSONB), so that a spec comes back as it
was sent.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Double, ForeignKey, Index, Integer, String, Text, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base", "DemandRow", "EventRow", "JobRow", "LeaseRow", "TeacherRow"]

_NAME = 255


class Base(DeclarativeBase):
    """Registry of the tables below."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads a plain class attribute
        float: Double(),
        dict[str, Any]: JSON(none_as_null=True),
        dict[str, str]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
    }


class TeacherRow(Base):
    """Wanted state of a teacher pool."""

    __tablename__ = "teachers"

    name: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    model_dir: Mapped[str] = mapped_column(Text)
    contract: Mapped[dict[str, Any]]
    replicas: Mapped[int]
    cpus_per_replica: Mapped[float]
    gpus_per_replica: Mapped[float]
    tokens_per_batch: Mapped[int | None]
    calibrations_dir: Mapped[str | None] = mapped_column(Text)
    weights_version: Mapped[int]
    mode: Mapped[str] = mapped_column(String(16), server_default="fixed")
    min_replicas: Mapped[int] = mapped_column(server_default="0")
    max_replicas: Mapped[int] = mapped_column(server_default="1")
    pinned: Mapped[bool] = mapped_column(Boolean, server_default=false())
    scaled_by_user: Mapped[bool] = mapped_column(Boolean, server_default=false())
    scaled_at: Mapped[float | None]
    used_at: Mapped[float | None]
    updated_at: Mapped[float]


class DemandRow(Base):
    """What one job still wants of its teacher pool; a row of an ended job counts for nothing."""

    __tablename__ = "teacher_demands"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", name="fk_demands_job"), primary_key=True)
    teacher_name: Mapped[str] = mapped_column(String(_NAME), ForeignKey("teachers.name", name="fk_demands_teacher"))
    backlog_tokens: Mapped[int] = mapped_column(BigInteger)
    tokens_per_second: Mapped[float | None]
    deadline_at: Mapped[float | None]
    updated_at: Mapped[float]


class JobRow(Base):
    """A distillation job. See `services.store.records.Job` for what the columns mean."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(_NAME))
    status: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str | None] = mapped_column(Text)
    phase: Mapped[str | None] = mapped_column(String(64))
    phase_history: Mapped[list[dict[str, Any]]]
    spec: Mapped[dict[str, Any]]
    user_metadata: Mapped[dict[str, str]] = mapped_column("metadata")
    progress: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None] = mapped_column(String(_NAME), unique=True)
    request_fingerprint: Mapped[str] = mapped_column(String(64))
    teacher_name: Mapped[str | None] = mapped_column(String(_NAME), ForeignKey("teachers.name", name="fk_jobs_teacher"))
    attempt: Mapped[int]
    fencing_token: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(_NAME))
    lease_expires_at: Mapped[float | None]
    heartbeat_at: Mapped[float | None]
    ray_submission_id: Mapped[str | None] = mapped_column(String(128))
    cancel_requested_at: Mapped[float | None]
    version: Mapped[int] = mapped_column()
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    __table_args__ = (Index("ix_jobs_status", "status"),)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as above


class EventRow(Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", name="fk_events_job"))
    created_at: Mapped[float]
    level: Mapped[str] = mapped_column(String(16))
    type: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]

    __table_args__ = (Index("ix_events_job_id_id", "job_id", "id"), {"sqlite_autoincrement": True})


class LeaseRow(Base):
    """Who does a thing that one process at a time should do, and until when."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    owner: Mapped[str] = mapped_column(String(_NAME))
    expires_at: Mapped[float]
