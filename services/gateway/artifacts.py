"""What a job left behind: a list of files, and each of them for download.

Files live in `<root>/jobs/<job id>/artifacts`. A name that does not lead to a regular file strictly below
that folder, by `..`, an absolute path or a symlink, is answered like one that does not exist. Downloads are
attachments that no browser interprets in this origin; ranges and ETags come from Starlette.
"""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from services.gateway.context import Context, GatewayContext
from services.gateway.problems import Problem
from services.gateway.schemas import Artifact, Page, page

__all__ = ["router"]

router = APIRouter(prefix="/v1/distillation/jobs", tags=["artifacts"])

_HEADERS = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}


@router.get("/{job_id}/artifacts")
def list_artifacts(
    job_id: str,
    context: Context,
    after: Annotated[str | None, Query(max_length=4096)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[Artifact]:
    """The job's files, by name."""
    found = [item for item in _artifacts(_folder(context, job_id)) if after is None or item.id > after]
    return page(found, [item.id for item in found], limit)


@router.get("/{job_id}/artifacts/{name:path}", response_class=FileResponse)
def get_artifact(job_id: str, name: str, context: Context) -> FileResponse:
    """Download one file."""
    folder = _folder(context, job_id)
    path = _file(folder, name)
    if path is None:
        detail = f"job {job_id} has no artifact {name[:200]!r}"
        raise Problem(HTTPStatus.NOT_FOUND, "artifact_not_found", detail, param="name")
    return FileResponse(path, filename=path.name, headers=_HEADERS)


def _folder(context: GatewayContext, job_id: str) -> Path:
    job = context.store.get_job(job_id)  # the store's id, so that nothing a user typed becomes a folder name
    return (context.settings.root / "jobs" / job.id / "artifacts").resolve()


def _artifacts(folder: Path) -> Iterator[Artifact]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    for name in sorted(names):
        if (path := _file(folder, name)) is not None:
            status = path.stat()
            yield Artifact(id=name, name=name, bytes=status.st_size, created_at=int(status.st_mtime))


def _file(folder: Path, name: str) -> Path | None:
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # missing, a symlink loop, text no file name can be
        return None
    return path if path.is_relative_to(folder) and path.is_file() else None
