"""People who ask a teacher to rerank ten documents, at random times, over Serve's HTTP proxy.

Enters: a teacher's address and the cluster's token, as the gateway uses them. Leaves: how long each answer took from
the moment at which it was asked for, how often the teacher was busy (429), and what else went wrong. Arrivals are a
Poisson process: nobody waits for the answer of somebody else before asking, so a slow teacher gets a queue.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np
from pools.pairs import read_texts

__all__ = ["DOCUMENTS", "Answers", "People"]

DOCUMENTS = 10
_QUESTIONS = 64
_PATIENCE_S = 120.0


@dataclass
class Answers:
    """What people got."""

    seconds: list[float] = field(default_factory=list)
    """Of answers; a 429 is none."""
    asked: int = 0
    busy: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def percentiles(self) -> dict[str, float]:
        """Of the latency, in milliseconds."""
        found = np.percentile(self.seconds, [50, 95, 99]) * 1e3 if self.seconds else [np.nan] * 3
        return {f"p{p} ms": float(value) for p, value in zip((50, 95, 99), found, strict=True)}

    def figures(self) -> dict[str, float]:
        """All of it."""
        return {"asked": self.asked, "busy (429)": self.busy, "errors": self.errors.total(), **self.percentiles()}


class People:
    """Ask one of 64 fixed questions each, so that an answer that differs from an earlier one is noticed.

    Args:
        url: of the teacher's application.
        token: of the cluster.
        rate: questions in a second, on average.
    """

    def __init__(self, url: str, token: str, *, rate: float) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._rate = rate
        self._rng = np.random.default_rng(1)
        queries, passages = read_texts()
        self._bodies = [
            {
                "query": queries[self._rng.integers(len(queries))],
                "documents": [passages[i] for i in self._rng.integers(0, len(passages), size=DOCUMENTS)],
            }
            for _ in range(_QUESTIONS)
        ]
        self._known: dict[int, list[float]] = {}

    def ask(self, seconds: float, into: Answers) -> None:
        """Ask for so long, and wait for the last answer."""
        asyncio.run(self._ask(seconds, into))

    async def _ask(self, seconds: float, into: Answers) -> None:
        gaps = self._rng.exponential(1 / self._rate, size=int(4 * seconds * self._rate) + 16)
        times = np.cumsum(gaps)
        begin = time.monotonic()
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            headers=self._headers, timeout=_PATIENCE_S, limits=limits, trust_env=False
        ) as client:
            asking = []
            for at in times[times < seconds]:
                await asyncio.sleep(max(0.0, begin + at - time.monotonic()))
                asking.append(asyncio.create_task(self._one(client, begin + at, into)))
            await asyncio.gather(*asking)

    async def _one(self, client: httpx.AsyncClient, asked_at: float, into: Answers) -> None:
        into.asked += 1
        number = int(self._rng.integers(_QUESTIONS))
        try:
            reply = await client.post(self._url, json=self._bodies[number])
        except httpx.HTTPError as error:
            into.errors[type(error).__name__] += 1
            return
        took = time.monotonic() - asked_at
        if reply.status_code == 429:
            into.busy += 1
        elif reply.status_code != 200:
            into.errors[f"{reply.status_code} {reply.text[:100]}"] += 1
        elif not np.allclose(logits := reply.json()["logits"], self._known.setdefault(number, logits), atol=1e-5):
            into.errors["other logits than before"] += 1
        else:
            into.seconds.append(took)
