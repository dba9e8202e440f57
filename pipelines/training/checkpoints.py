"""Checkpoints: everything a run needs to go on as if it had never stopped, in one folder per step.

Enters: model, optimizer, scheduler, stream position. Leaves: `step-<n>/` with safetensors weights, a weights-only
loadable optimizer state and a JSON state, written whole under another name and then renamed: a half-written
checkpoint is never found.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.errors import CheckpointError
from pipelines.ranked.tail import StreamPosition

__all__ = ["Checkpoints", "RunPoint"]


@dataclass(frozen=True)
class RunPoint:
    """How far a run is: optimizer steps done, and the next row of the stream."""

    step: int = 0
    position: StreamPosition = field(default_factory=StreamPosition)


class Checkpoints:
    """The checkpoints of one run below `folder`; `run_fingerprint` names the settings they belong to."""

    def __init__(self, folder: Path, *, run_fingerprint: str, keep: int) -> None:
        self._folder = folder
        self._fingerprint = run_fingerprint
        self._keep = keep

    def save(self, point: RunPoint, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Write the checkpoint of `point`, durable on return, and drop all but the newest `keep`."""
        final = self._folder / f"step-{point.step:08d}"
        scratch = self._folder / f".{final.name}.partial"
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
        tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
        save_file(tensors, scratch / "model.safetensors")
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
        }
        (scratch / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in (*scratch.iterdir(), scratch):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        scratch.rename(final)
        _sync(self._folder)
        for old in self._steps()[: -self._keep]:
            shutil.rmtree(old)

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
        return RunPoint(state["step"], StreamPosition(state["epoch"], state["ordinal"]))

    def _steps(self) -> list[Path]:
        return sorted(self._folder.glob("step-*")) if self._folder.is_dir() else []


def _on_cuda(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
