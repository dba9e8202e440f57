"""The torch backend: eager or compiled, on CPU or CUDA, in fp32, tf32, bf16 or fp16.

On CUDA a batch has no padding where the model can do without, is copied from pinned memory without waiting, and its
logits come back the same way. On CPU each worker thread computes one batch with one core: two batches on two cores
beat one batch on both, which would wait for the slower core after every operation.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.teacher.backends.protocol import Logits
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.model import PairModel
from pipelines.teacher.varlen import Sequences

__all__ = ["TorchBackend"]

_WIDTH_STEP = 32
_MOST_SHAPES = 1024


class TorchBackend:
    """One `PairModel` on one device.

    Args:
        model: on the device, in its dtype.
        device: where it is.
        threads: CPU cores to use.
        packed: score without padding; the model must be able to.
        compiled: use `torch.compile` over a small set of shapes (CUDA: with CUDA graphs); the first batch of each shape
            takes long. Excludes `packed`.
        max_length: the longest pair; compiled shapes are no wider.
        tf32: let fp32 matrix products run on TF32 tensor cores (CUDA).
    """

    def __init__(
        self,
        model: PairModel,
        *,
        device: torch.device,
        threads: int = 1,
        packed: bool = False,
        compiled: bool = False,
        max_length: int = 1 << 30,
        tf32: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._packed = packed
        self._compiled = compiled
        self._max_length = max_length
        self._tf32 = tf32
        self._local = threading.local()
        self.workers = max(1, threads) if device.type == "cpu" and not compiled else 1
        self._threads = 1 if self.workers > 1 else max(1, threads)
        if packed:
            model.use_packed_attention()
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self._forward: Callable[..., Tensor] = torch.compile(model, mode=mode, dynamic=False) if compiled else model
        if compiled:
            # Beyond the limit (8 by default) torch would run new shapes eagerly and only warn.
            torch._dynamo.config.recompile_limit = max(_MOST_SHAPES, torch._dynamo.config.recompile_limit)
            torch._dynamo.config.fail_on_recompile_limit_hit = True

    @torch.inference_mode()
    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        """Begin a batch; see `protocol.Backend`."""
        if self._device.type != "cuda":
            self._limit_threads()
            logits = self._run(batch).numpy()
            return lambda: logits
        with _tf32_products(allowed=self._tf32):
            logits_there = self._run(batch)
        here = torch.empty(logits_there.shape, dtype=torch.float32, pin_memory=True)
        here.copy_(logits_there, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def collect() -> Logits:
            done.synchronize()
            return here.numpy()

        return collect

    def free_memory(self) -> None:
        """Empty torch's cache of CUDA memory."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _limit_threads(self) -> None:
        # Torch keeps the number for each thread that computes.
        if not getattr(self._local, "limited", False):
            torch.set_num_threads(self._threads)
            self._local.limited = True

    def _run(self, batch: PairBatch) -> Tensor:
        if self._packed:
            types = None if batch.token_types is None else self._there(batch.token_types)
            bounds = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
            sequences = Sequences(self._there(bounds), int(batch.lengths.max()))
            return self._model.packed(self._there(batch.input_ids), types, sequences)
        inputs = batch.padded(**self._bucket(batch))
        return self._forward(**{name: self._there(array) for name, array in inputs.items()})[: len(batch)]

    def _bucket(self, batch: PairBatch) -> dict[str, int]:
        """Compiled code is made for one shape: widths are rounded up, rows to a power of two."""
        if not self._compiled:
            return {}
        width = min(-(-int(batch.lengths.max()) // _WIDTH_STEP) * _WIDTH_STEP, self._max_length)
        return {"rows": 1 << (len(batch) - 1).bit_length(), "width": width}

    def _there(self, array: npt.NDArray[np.integer[Any]]) -> Tensor:
        here = torch.from_numpy(array)
        return here.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else here


@contextmanager
def _tf32_products(*, allowed: bool) -> Iterator[None]:
    """For the kernels launched inside; the switch is the process's, and others in it want it their way."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
