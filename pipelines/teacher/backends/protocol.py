"""What the engine asks of a backend. A new one (a remote server, another runtime) implements this and nothing else."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.teacher.batch import PairBatch

__all__ = ["Backend", "Logits"]

Logits = npt.NDArray[np.float32]


class Backend(Protocol):
    """Turns batches into logits."""

    @property
    def workers(self) -> int:
        """How many threads may be in `start` at once, to the backend's advantage."""
        ...

    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        """Begin a batch; the returned function waits for its fp32 logits [pairs].

        May return before the device is done, so that the next batch is prepared meanwhile.
        """
        ...

    def free_memory(self) -> None:
        """Give back what is cached but not in use; called after a batch ran out of memory."""
        ...
