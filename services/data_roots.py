"""Where a job's files may come from: strictly below the operator's data roots, whatever the path looks like.

Enters: a path or model id as a user wrote it, and the roots. Leaves: the resolved path (existing or not), or
`OutsideDataRoots`. The gateway asks before it accepts a job; the driver asks again before it opens anything,
because a symlink may have appeared in between. Nothing here says whether a file outside the roots exists.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from pipelines.spec import DistillationSpec, ModelSpec
from services.errors import OutsideDataRoots

__all__ = ["OutsideDataRoots", "offences", "resolve_dataset", "resolve_model_folder"]

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")


def offences(spec: DistillationSpec, roots: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(field, why) of every path in a spec that does not lie below a data root."""
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


def resolve_dataset(path: str, roots: Sequence[Path]) -> Path:
    """The folder or file of `dataset.path`, which is relative to a data root.

    With several roots the first one that has it wins; when none has it, the place in the first root is
    returned.

    Raises:
        OutsideDataRoots: absolute, with a `..` or backslash, or leading out of its root through a symlink.
    """
    if path.startswith("~") or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise OutsideDataRoots(f"{path!r} must be relative to a data root, without '..' or '~'")
    return _below(path, roots)


def resolve_model_folder(model_id: str, roots: Sequence[Path]) -> Path | None:
    """The folder that a model id names, or None for `package:<name>` and for a hub id (`name`, `org/name`).

    Whatever is neither is a path: relative to a data root, or absolute and below one.

    Raises:
        OutsideDataRoots: it is a path and does not lie below a data root.
    """
    if model_id.startswith("package:"):
        return None
    if _HUB_ID.fullmatch(model_id) and ".." not in model_id and not any((root / model_id).exists() for root in roots):
        return None
    if model_id.startswith("~"):
        raise OutsideDataRoots(f"{model_id!r} must lie below a data root; '~' is nobody's home here")
    return _below(model_id, roots)


def _below(path: str, roots: Sequence[Path]) -> Path:
    if not roots:
        raise OutsideDataRoots(f"{path!r} cannot be used: this deployment has no data roots")
    if "\\" in path or "\0" in path:
        raise OutsideDataRoots(f"{path!r} must not contain a backslash or NUL")
    absolute = PurePosixPath(path).is_absolute()
    inside: list[Path] = []
    for root in roots:
        resolved = _resolved(root.resolve(), path)
        if resolved is not None:
            inside.append(resolved)
        elif not absolute:
            break  # it leads out of this root: another root must not make that acceptable
    else:
        if inside:
            return next((candidate for candidate in inside if candidate.exists()), inside[0])
    raise OutsideDataRoots(f"{path!r} does not lie below a data root")


def _resolved(root: Path, path: str) -> Path | None:
    try:
        resolved = (root / path).resolve()
        resolved.exists()  # also finds names too long for the file system
    except (OSError, RuntimeError, ValueError):  # no permission to look, symlink loop, text no file name can be
        return None
    return resolved if resolved != root and resolved.is_relative_to(root) else None
