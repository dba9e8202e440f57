"""The torch backend: eager or compiled, on CPU or CUDA, in fp32, tf32, bf16 or fp16.

On CUDA a batch has no padding where the model can do without, is copied from pinned memory without waiting, and its
logits come back the same way. On CPU each worker thread computes one batch with one core: two batches on two cores
beat one batch on both, which would wait for the slower core after every operation.
"""

import threading
from collections.abc import Callable
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


class TorchBackend:
    """One `PairModel` on one device.

    Args:
        model: on the device, in its dtype.
        device: where it is.
        threads: CPU cores to use.
        packed: score without padding; the model must be able to.
        compiled: use `torch.compile` over a small set of shapes (CUDA: with CUDA graphs); the first batch of each shape
            takes long. Excludes `packed`.
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
        tf32: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._packed = packed
        self._compiled = compiled
        self._tf32 = tf32
        self._local = threading.local()
        self.workers = max(1, threads) if device.type == "cpu" and not compiled else 1
        self._threads = 1 if self.workers > 1 else max(1, threads)
        if packed:
            model.use_packed_attention()
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self._forward: Callable[..., Tensor] = torch.compile(model, mode=mode, dynamic=False) if compiled else model

    @torch.inference_mode()
    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        """Begin a batch; see `protocol.Backend`."""
        self._prepare_thread()
        if self._device.type != "cuda":
            logits = self._run(batch).numpy()
            return lambda: logits
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

    def _prepare_thread(self) -> None:
        # Torch keeps the number of threads per thread; TF32 is a switch of the process.
        if not getattr(self._local, "ready", False):
            if self._device.type == "cpu":
                torch.set_num_threads(self._threads)
            else:
                torch.backends.cuda.matmul.allow_tf32 = self._tf32
                torch.backends.cudnn.allow_tf32 = self._tf32
            self._local.ready = True

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
        width = -(-int(batch.lengths.max()) // _WIDTH_STEP) * _WIDTH_STEP
        return {"rows": 1 << (len(batch) - 1).bit_length(), "width": width}

    def _there(self, array: npt.NDArray[np.integer[Any]]) -> Tensor:
        here = torch.from_numpy(array)
        return here.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else here
