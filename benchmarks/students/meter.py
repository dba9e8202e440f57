"""What is measured of a trainer's steps, whichever trainer it is: time, texts, tokens, memory, the first loss.

Enters: what goes into the encoder, the losses, and a word after each step. Leaves: the figures of the steps behind the
warm-up. Tokens are counted where they enter the encoder, so padding and texts that are encoded twice show on
either side alike. Nothing waits for a GPU but the two ends of the clock.
"""

import functools
import gc
import time
from pathlib import Path
from typing import Any

import torch
from peers.miners import resident
from torch import Tensor, nn

__all__ = ["Meter"]


class Meter:
    """One turn: `warmup` steps that do not count, then `steps` that do.

    Attributes:
        total: steps of a turn, warm-up included.
    """

    def __init__(self, settings: dict[str, Any], device: torch.device) -> None:
        self.total = settings["warmup"] + settings["steps"]
        self._warmup, self._steps, self._device = settings["warmup"], settings["steps"], device
        self._first: float | None = None
        self._begin_turn()

    def watch_encoder(self, encoder: nn.Module) -> None:
        """Count what this module is given; not by a hook, for the peer calls `forward` by its name."""
        forward = encoder.forward

        @functools.wraps(forward)
        def counted(**inputs: Any) -> Any:
            self._masks.append(inputs["attention_mask"].detach())
            return forward(**inputs)

        encoder.forward = counted  # type: ignore[method-assign]

    def loss(self, value: Tensor) -> None:
        """A loss was computed; the first one ever is kept."""
        if self._first is None:
            self._first = float(value.item())

    def step(self) -> bool:
        """A step is done; True: it was the last of this turn."""
        self._done += 1
        if self._done == self._warmup:
            self._masks.clear()
            self._started = self._now()
        if self._done == self.total:
            self._seconds = self._now() - self._started
        return self._done >= self.total

    def begin(self) -> None:
        """A turn begins: the peak of memory begins anew with it."""
        self._begin_turn()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def figures(self) -> dict[str, Any]:
        """Of this turn, texts and tokens per step."""
        lengths = [mask.sum(dim=1).double() for mask in self._masks]
        padded = sum(mask.numel() for mask in self._masks)
        on_gpu = torch.cuda.max_memory_allocated() / 2**20 if self._device.type == "cuda" else 0.0
        return {
            "seconds": self._seconds,
            "texts": sum(len(each) for each in lengths) / self._steps,
            "forward_passes": len(lengths) / self._steps,
            "tokens": sum(float(each.sum()) for each in lengths) / self._steps,
            "squared_lengths": sum(float(each.square().sum()) for each in lengths) / self._steps,
            "padded_tokens": padded / self._steps,
            "first_loss": self._first,
            "before_mib": self._before,
            "peak_mib": resident("VmHWM"),
            "peak_gpu_mib": on_gpu,
        }

    def _begin_turn(self) -> None:
        self._done, self._started, self._seconds, self._before = 0, 0.0, 0.0, 0.0
        self._masks: list[Tensor] = []

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
