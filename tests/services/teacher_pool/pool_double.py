"""Stands where Serve's handle does: `handle.score.remote(pairs, job=...)` gives a reply that is waited for elsewhere.

What a real replica raises when it is killed, hung or drained is in tests/system.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from tiny import byte_pairs, texts_of

from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreRequest
from pipelines.tokens import TokenPairs
from services.teacher_pool.messages import ScoreReply

CONTRACT = ScoreContract(model_id="m", revision=None, weights_hash="ab", max_length=64, dtype="fp32")
VERSION = 4

Texts = list[tuple[str, str]]


class Handle:
    """Answers with `answer(texts)`, in the thread that waits for the reply."""

    def __init__(self, answer: Callable[[Texts], Any]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        """How often each first query was sent."""
        self.sizes: list[int] = []
        self.deadlines: set[float | None] = set()
        self.jobs: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.cancelled = 0

    @property
    def score(self) -> "Handle":
        return self

    def remote(self, pairs: TokenPairs, *, job: str) -> "Reply":
        texts = texts_of(pairs)
        with self._lock:
            self.calls[texts[0][0]] += 1
            self.sizes.append(len(texts))
            self.jobs.add(job)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        return Reply(self, texts)

    def answer(self, texts: Texts) -> Any:
        try:
            return self._answer(texts)
        finally:
            with self._lock:
                self.at_once -= 1


class Reply:
    def __init__(self, handle: Handle, texts: Texts) -> None:
        self._handle, self._texts = handle, texts

    def result(self, timeout_s: float | None = None) -> Any:
        self._handle.deadlines.add(timeout_s)
        return self._handle.answer(self._texts)

    def cancel(self) -> None:
        self._handle.cancelled += 1


def logits(texts: Texts) -> np.ndarray:
    """A pure function of the pairs, as a teacher is."""
    return np.array([sum(query.encode()) + 7 * sum(passage.encode()) for query, passage in texts], dtype=np.float32)


def reply(texts: Texts, *, version: int = VERSION, fingerprint: str = CONTRACT.fingerprint) -> ScoreReply:
    return ScoreReply(fingerprint, version, logits(texts), num_tokens=10 * len(texts), seconds=0.5)


def request(key: int, num_pairs: int = 256) -> ScoreRequest:
    """Enough pairs for a call of its own."""
    return ScoreRequest(key, byte_pairs([(f"q{key}", f"p{row}") for row in range(num_pairs)]))
