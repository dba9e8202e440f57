"""Slow copies of a student: its weights averaged over steps, and a queue of what a slow copy encoded lately.

    slow <- decay * slow + (1 - decay) * weights          after every optimizer step

Enters: the student after each step, the documents of each batch. Leaves: a student that is evaluated and exported in
place of the last weights (EMA, Polyak averaging), or further negatives for every term that looks at the batch's
documents (momentum encoder and queue: MoCo arXiv 1911.05722, ALBEF arXiv 2107.07651, as CPRD uses them, arXiv
2407.07479 section 3: queue columns are constants, only the query's side receives gradient there). All of it is part of
the module's state, so a checkpoint holds it.
"""

import copy
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipelines.student.heads import StudentViews
from pipelines.student.model import DualEncoder

__all__ = ["DocumentQueue", "SlowCopy", "text_keys"]


class SlowCopy(nn.Module):
    """A student that follows another one slowly; never receives a gradient, always in eval mode."""

    def __init__(self, student: DualEncoder, *, decay: float) -> None:
        super().__init__()
        self.student = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.eval()

    def train(self, mode: bool = True) -> "SlowCopy":
        """Dropout stays off, whatever the student's mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def follow(self, student: DualEncoder) -> None:
        """One step towards `student`; its buffers are taken over as they are."""
        for slow, weight in zip(self.student.parameters(), student.parameters(), strict=True):
            slow.lerp_(weight, 1 - self.decay)
        for kept, buffer in zip(self.student.buffers(), student.buffers(), strict=True):
            kept.copy_(buffer)


def text_keys(texts: Iterable[str]) -> Tensor:
    """int64 [texts], the same for the same text in every process (Python's own `hash` is not)."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest) >> 1 for digest in digests], dtype=torch.int64)


class DocumentQueue(nn.Module):
    """The last `size` documents that a slow copy encoded: pooled vectors and what tells their texts apart."""

    vectors: Tensor
    keys: Tensor
    filled: Tensor

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, hidden_size))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return int(self.filled)

    def put(self, vectors: Tensor, keys: Tensor) -> None:
        """Take in documents [n, hidden] with their keys int64 [n], the last one as the newest; the oldest go."""
        size = len(self.vectors)
        fresh = vectors.detach()[-size:].flip(0).float()
        fresh_keys = keys[-size:].flip(0).to(self.keys.device)
        kept = min(len(self), size - len(fresh))
        self.vectors[: len(fresh) + kept] = torch.cat([fresh, self.vectors[:kept]])
        self.keys[: len(fresh) + kept] = torch.cat([fresh_keys, self.keys[:kept]])
        self.filled.fill_(len(fresh) + kept)

    def views(self, slow: SlowCopy) -> StudentViews:
        """The queue as the slow copy's heads see it now, [filled, dimensions]; constants."""
        with torch.no_grad():
            return slow.student.views(self.vectors[: len(self)])
