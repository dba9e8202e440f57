"""Every path inside a spec, checked before the job exists: users name data, not places on a server.

Enters: a validated spec and the operator's data roots. Leaves: nothing, or a 422 that names each offending
field. Whether the folders exist is not asked here: the driver finds out, and fails the job with a message.
"""

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from pipelines.spec import DistillationSpec
from services.data_roots import OutsideDataRoots, offences
from services.gateway.problems import Problem, pointer

__all__ = ["check_paths"]


def check_paths(spec: DistillationSpec, roots: Sequence[Path]) -> None:
    """Refuse a spec that reaches out of the data roots.

    Raises:
        Problem: 422 with a pointer to `dataset.path` or a model's `id`.
    """
    found = list(offences(spec, roots))
    if found:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            OutsideDataRoots.reason,
            "; ".join(f"{field}: {detail}" for field, detail in found),
            param=found[0][0],
            errors=[(pointer(["spec", *field.split(".")]), detail) for field, detail in found],
        )
