"""Everything that a student's step has learned, in one file: after a round, or somewhere in it.

Enters: a `StudentStep`. Leaves: a safetensors file that appears whole.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from pipelines.training.student_step import StudentStep
from pipelines.whole_files import whole_file

__all__ = ["EarlySnapshot", "save_step"]


@dataclass(frozen=True)
class EarlySnapshot:
    """Keep the step at `path` as it is after step `after_step` of the run: what the next round's index is made from."""

    path: Path
    after_step: int


def save_step(step: StudentStep, path: Path) -> None:
    """Write everything a step has learned, whole."""
    with whole_file(path) as scratch:
        save_file({name: value.contiguous().clone() for name, value in step.state_dict().items()}, scratch)
