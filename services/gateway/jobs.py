"""POST, list, get and cancel of distillation jobs.

A POST validates, commits one row and answers 201; everything else happens in the reconciler and the driver.
With an `Idempotency-Key`, sending the same request again gives the same job, and another request under that
key is refused.
"""

import hashlib
import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from services.gateway.context import Context
from services.gateway.datasets import check_paths
from services.gateway.problems import Problem
from services.gateway.schemas import CreateJob, JobReply, Page, page
from services.store import STATUSES

__all__ = ["router"]

router = APIRouter(prefix="/v1/distillation/jobs", tags=["distillation jobs"])

_IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.post("", status_code=HTTPStatus.CREATED)
def create_job(
    body: CreateJob, response: Response, context: Context, idempotency_key: _IdempotencyKey = None
) -> JobReply:
    """Accept a job. When this has answered, the job survives any crash."""
    check_paths(body.spec, context.settings.data_roots)
    spec = body.spec.model_dump(mode="json")
    fingerprint = _fingerprint({"spec": spec, "metadata": body.metadata})
    job = context.store.create_job(
        spec,
        metadata=body.metadata,
        idempotency_key=idempotency_key,
        request_fingerprint=fingerprint,
    )
    if job.request_fingerprint != fingerprint:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            f"This Idempotency-Key was used for another request, which made job {job.id}.",
            param="Idempotency-Key",
        )
    response.headers["location"] = f"{router.prefix}/{job.id}"
    return JobReply.of(job)


@router.get("")
def list_jobs(
    context: Context,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[str | None, Query(json_schema_extra={"enum": list(STATUSES)})] = None,
) -> Page[JobReply]:
    """Jobs, newest first."""
    if status is not None and status not in STATUSES:
        detail = f"{status[:80]!r} is not a status; there are {', '.join(STATUSES)}"
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid_request",
            f"status: {detail}",
            param="status",
            errors=[("status", detail)],
        )
    jobs = context.store.list_jobs(after=after, limit=limit + 1, status=status)
    return page([JobReply.of(job) for job in jobs], [job.id for job in jobs], limit)


@router.get("/{job_id}")
def get_job(job_id: str, context: Context) -> JobReply:
    """One job."""
    return JobReply.of(context.store.get_job(job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, context: Context) -> JobReply:
    """End a job: at once when it is queued; else it is `cancelling` until its driver has stopped."""
    return JobReply.of(context.store.request_cancel(job_id))


def _fingerprint(request: dict[str, Any]) -> str:
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
