"""Files and folders that are whole or not there, whatever dies meanwhile, a power cut included.

Enters: where something is to be. Leaves: a path beside it to write to; at the end of the block it is on its disk and
has its name. When the block raises, whatever had the name before still has it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["durable", "whole_file", "whole_folder", "write_json"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path`; what an earlier attempt left there is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(path)
    yield scratch
    durable(scratch)
    scratch.replace(path)
    durable(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path`, in the place of one that is there."""
    scratch = _scratch(path)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    for each in (*scratch.rglob("*"), scratch):
        durable(each)
    if path.exists():
        shutil.rmtree(path)
    scratch.rename(path)
    durable(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, whole.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")


def durable(path: Path) -> None:
    """Wait until a file or folder is on its disk.

    Raises:
        OSError: as `os.fsync` raises.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
