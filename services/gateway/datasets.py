"""Every path inside a spec, checked before the job exists: users name data, not places on a server.

Enters: a validated spec and the operator's data roots. Leaves: nothing, or a 422 that names each offending
field. Whether the folders exist is not asked here: the driver finds out, and fails the job with a message.
"""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

from pydantic import BaseModel

from pipelines.spec import DistillationSpec, ModelSpec
from services.data_roots import OutsideDataRoots, resolve_dataset, resolve_model_folder
from services.gateway.problems import Problem, pointer

__all__ = ["check_paths"]


def check_paths(spec: DistillationSpec, roots: Sequence[Path]) -> None:
    """Refuse a spec that reaches out of the data roots.

    Raises:
        Problem: 422 with a pointer to `dataset.path` or a model's `id`.
    """
    found = list(_offences(spec, roots))
    if found:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            OutsideDataRoots.reason,
            "; ".join(f"{field}: {detail}" for field, detail in found),
            param=found[0][0],
            errors=[(pointer(["spec", *field.split(".")]), detail) for field, detail in found],
        )


def _offences(spec: DistillationSpec, roots: Sequence[Path]) -> Iterator[tuple[str, str]]:
    try:
        resolve_dataset(spec.dataset.path, roots)
    except OutsideDataRoots as error:
        yield "dataset.path", str(error)
    for field, model in _models(spec, ()):
        try:
            resolve_model_folder(model.id, roots)
        except OutsideDataRoots as error:
            yield f"{field}.id", str(error)


def _models(section: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[str, ModelSpec]]:
    """Every model reference of a spec, wherever a later version puts one: none may be forgotten here."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, ModelSpec):
            yield ".".join((*path, name)), value
        elif isinstance(value, BaseModel):
            yield from _models(value, (*path, name))
