"""Checkpoints: everything a run needs to go on as if it had never stopped, in one folder per step.

Enters: model, optimizer, scheduler, stream position. Leaves: `step-<n>/` with safetensors weights, a weights-only
loadable optimizer state and a JSON state, written whole under another name and then renamed: a half-written
checkpoint is never found. `best-<n>/` holds the weights that did best on held-out queries.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.errors import CheckpointError
from pipelines.ranked.tail import StreamPosition
from pipelines.training.held_out import Best
from pipelines.whole_files import whole_folder

__all__ = ["Checkpoints", "RunPoint", "newest_step"]


@dataclass(frozen=True)
class RunPoint:
    """How far a run is: optimizer steps done, the next row of the stream, the best measure on held-out queries."""

    step: int = 0
    position: StreamPosition = field(default_factory=StreamPosition)
    best: Best | None = None


class Checkpoints:
    """The checkpoints of one run below `folder`.

    Args:
        folder: theirs alone.
        run_fingerprint: names the settings they belong to.
        keep: how many.
        facts: what else to note in each, say the version of the table that is read; not needed to go on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_fingerprint: str,
        keep: int,
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._folder = folder
        self._fingerprint = run_fingerprint
        self._keep = keep
        self._facts = facts

    def save(self, point: RunPoint, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Write the checkpoint of `point`, durable on return, and drop all but the newest `keep`."""

        def write(scratch: Path) -> None:
            save_file(_tensors(model), scratch / "model.safetensors")
            torch.save(
                {
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "torch_rng": torch.get_rng_state(),
                    "cuda_rng": torch.cuda.get_rng_state() if _on_cuda(model) else None,
                },
                scratch / "optimizer.pt",
            )
            state = {
                "run_fingerprint": self._fingerprint,
                "step": point.step,
                "epoch": point.position.epoch,
                "ordinal": point.position.ordinal,
                "best": asdict(point.best) if point.best else None,
                "facts": self._facts(),
            }
            (scratch / "state.json").write_text(json.dumps(state), encoding="utf-8")

        self._write(f"step-{point.step:08d}", write)
        best = point.best.step if point.best else -1
        for old in (*self._steps()[: -self._keep], *self._folder.glob("best-*")):
            if old.name != _best(best):
                shutil.rmtree(old)

    def save_best(self, point: RunPoint, model: nn.Module) -> None:
        """Keep the weights of `point` as the best so far, durable on return."""
        self._write(_best(point.step), lambda scratch: save_file(_tensors(model), scratch / "model.safetensors"))

    def load_best(self, best: Best, model: nn.Module) -> None:
        """Give `model` the weights that were `best`.

        Raises:
            CheckpointError: they cannot be read.
        """
        try:
            model.load_state_dict(load_file(self._folder / _best(best.step) / "model.safetensors"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the best weights, of step {best.step}, cannot be read: {error}") from error

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        with whole_folder(self._folder / name) as scratch:
            write(scratch)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> RunPoint:
        """Load the newest checkpoint into the objects; `RunPoint()` and nothing changed when there is none.

        Raises:
            CheckpointError: the newest checkpoint was written under other settings, or lacks a file.
        """
        steps = self._steps()
        if not steps:
            return RunPoint()
        newest = steps[-1]
        try:
            state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(newest / "model.safetensors")
            saved = torch.load(newest / "optimizer.pt", weights_only=True, map_location="cpu")
        except (OSError, ValueError, EOFError, RuntimeError, UnpicklingError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {newest.name} cannot be read: {error}") from error
        if state["run_fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"checkpoint {newest.name} belongs to a run with other settings "
                f"({state['run_fingerprint']}, this run is {self._fingerprint})"
            )
        model.load_state_dict(tensors)
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["torch_rng"])
        if _on_cuda(model) and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"])
        best = Best(**state["best"]) if state["best"] else None
        return RunPoint(state["step"], StreamPosition(state["epoch"], state["ordinal"]), best)

    def _steps(self) -> list[Path]:
        return sorted(self._folder.glob("step-*")) if self._folder.is_dir() else []


def newest_step(folder: Path) -> int:
    """How many steps the run whose checkpoints lie in `folder` has done; 0 without any."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


def _best(step: int) -> str:
    return f"best-{step:08d}"


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous().clone() for name, value in model.state_dict().items()}


def _on_cuda(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda
