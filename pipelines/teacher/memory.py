"""Out of memory: halve the batch and go on, down to a single pair; any other error is none of our business.

Enters: a backend and batches. Leaves: their logits. What once ran out of memory is never tried at that size again.
"""

import errno
import logging
import threading
from collections.abc import Callable

import numpy as np
import torch

from pipelines.teacher.backends.protocol import Backend, Logits
from pipelines.teacher.batch import PairBatch

__all__ = ["WithinMemory", "is_out_of_memory"]

_WORDS = (
    "can't allocate memory",  # torch's CPU allocator
    "std::bad_alloc",  # OpenVINO
    "CUDA out of memory",
    "CUDA error: out of memory",  # outside torch's allocator: pinned memory, a kernel's launch
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_LOG = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


class WithinMemory:
    """Begins batches on `backend`, in pieces where they would not fit. Safe to call from several threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._limit: int | None = None

    @property
    def limit(self) -> int | None:
        """Padded tokens that a batch of several pairs may have; None until memory ran out once."""
        return self._limit

    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        """As `Backend.start`.

        Raises:
            Exception: whatever the backend raised, if it was not for memory, or for a batch of one pair.
        """
        if self._limit is not None and len(batch) > 1 and batch.padded_tokens > self._limit:
            return self._halves(batch)
        try:
            return self._backend.start(batch)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            self._lower(batch.padded_tokens // 2, error)
        self._backend.free_memory()  # outside the handler: the traceback holds the tensors that did not fit
        return self._halves(batch)

    def _halves(self, batch: PairBatch) -> Callable[[], Logits]:
        middle = len(batch) // 2
        parts = [self.start(batch.slice(0, middle)), self.start(batch.slice(middle, len(batch)))]
        return lambda: np.concatenate([part() for part in parts])

    def _lower(self, limit: int, error: Exception) -> None:
        with self._lock:
            self._limit = limit if self._limit is None else min(self._limit, limit)
            _LOG.warning("a batch ran out of memory; none will have more than %s tokens: %s", self._limit, error)
