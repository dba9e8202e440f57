"""One replica of a teacher: a `TeacherEngine` behind Ray Serve.

Enters: batch calls of jobs as token ids, over a handle; a person's query and documents as text, over HTTP. Leaves: raw
logits, with the fingerprint of the contract and the version of the weights that made them. Jobs take turns, people go
first. Which teacher to be comes as `user_config`, so that new weights are loaded in place, without a new process.
"""

import asyncio
import hmac
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipelines.devices import use_threads
from pipelines.errors import Cancelled, PipelineError
from pipelines.pretrained import quiet_loading
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.engine import ScoredPairs, TeacherEngine, load_engine
from pipelines.tokens import TokenPairs
from services.settings import ray_token
from services.teacher_pool.messages import DEPLOYMENT_NAME, ScoreReply
from services.teacher_pool.metrics import ReplicaMetrics
from services.teacher_pool.turns import Turns

__all__ = ["TeacherReplica", "app"]

_MOST_PEOPLE = 16
"""Interactive calls at work in one replica; one more is asked to come back, rather than to wait behind all of them."""


class TeacherReplica:
    """Scores pairs; configured by the `user_config` of `services.teacher_pool.control.render`.

    Args:
        name: of the teacher, in metrics; None inside Serve, where the application has it.
    """

    def __init__(self, name: str | None = None) -> None:
        quiet_loading()
        self._teacher: _Teacher | None = None
        self._configured: dict[str, Any] = {}
        self._turns = Turns()
        self._alive: dict[object, float] = {}
        """When each call that is in the engine began its last batch."""
        self._metrics = ReplicaMetrics(name or serve.get_replica_context().app_name)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Become the teacher that `config` describes; calls in progress finish with the old weights."""
        async with self._turns.turn("", 0):
            if not _same_engine(config, self._configured):
                before = self._teacher
                self._teacher = _Teacher(await asyncio.to_thread(_load, config), config["weights_version"])
                if before is not None:
                    before.retire()
            self._configured = config

    def check_health(self) -> None:
        """Serve asks regularly, and replaces a replica that raises: here one whose engine never comes back.

        Each time the version of the weights is said anew, because Ray exports a gauge once per value that it is given.

        Raises:
            RuntimeError: a call has begun no batch, and not ended, for `hang_after_s`.
        """
        if self._teacher is not None:
            self._metrics.weights(self._teacher.weights_version)
        hang_after_s = self._configured.get("hang_after_s", math.inf)
        quiet = time.monotonic() - min(self._alive.values(), default=math.inf)
        if quiet > hang_after_s:
            raise RuntimeError(f"a call has made no progress for {quiet:.0f} s, it counts as hung after {hang_after_s}")

    async def score(self, pairs: TokenPairs, *, job: str = "") -> ScoreReply:
        """Raw fp32 logits of tokenised pairs, when it is the turn of `job`."""
        waiting = self._turns.turn(job, int(pairs.lengths.sum()))
        self._metrics.queued(job, self._turns.depth + 1)
        async with waiting:
            self._metrics.queued(job, self._turns.depth)
            with self._ready().in_use() as teacher, self._watched() as still_alive:
                scored = await asyncio.to_thread(self._measure, teacher.engine, pairs, still_alive)
        self._note(job, pairs, scored, teacher.engine)
        return ScoreReply(
            teacher.engine.contract.fingerprint,
            teacher.weights_version,
            scored.logits,
            num_tokens=scored.num_tokens,
            seconds=scored.seconds,
        )

    async def __call__(self, request: Request) -> Response:
        """`{"query", "documents"}` in, `{"logits", "weights_version", "contract"}` out; for the gateway alone.

        A logit that is NaN or infinite is null: JSON has no word for it.
        """
        token = ray_token() or ""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token or not hmac.compare_digest(given.encode(), token.encode()):
            return JSONResponse({"error": "the cluster's token is missing or wrong"}, 401)
        if self._turns.people >= _MOST_PEOPLE:
            return JSONResponse({"error": "the teacher is busy"}, 429, {"retry-after": "1"})
        body = await request.json()
        documents = body["documents"]
        try:
            with self._turns.person(), self._ready().in_use() as teacher, self._watched():
                logits = await asyncio.to_thread(_logits, teacher.engine, body["query"], documents)
        except PipelineError as error:
            return JSONResponse({"error": str(error), "reason": error.reason}, 422)
        return JSONResponse(
            {
                "logits": logits,
                "weights_version": teacher.weights_version,
                "contract": teacher.engine.contract.fingerprint,
            }
        )

    def _measure(self, engine: TeacherEngine, pairs: TokenPairs, still_alive: Callable[[], None]) -> ScoredPairs:
        def before_batch() -> None:
            self._turns.pause_for_people()
            still_alive()

        return engine.measure_pairs(pairs, before_batch=before_batch)

    def _ready(self) -> "_Teacher":
        if self._teacher is None:
            raise RuntimeError("the replica was asked to score before it was configured")
        return self._teacher

    @contextmanager
    def _watched(self) -> Iterator[Callable[[], None]]:
        call = object()
        self._alive[call] = time.monotonic()

        def still_alive() -> None:
            if call not in self._alive:
                raise Cancelled("the caller does not wait any more")  # its thread has not heard of that yet
            self._alive[call] = time.monotonic()

        try:
            yield still_alive
        finally:
            del self._alive[call]

    def _note(self, job: str, pairs: TokenPairs, scored: ScoredPairs, engine: TeacherEngine) -> None:
        if not len(pairs):
            return
        self._metrics.scored(
            job,
            pairs=len(pairs),
            tokens=scored.num_tokens,
            seconds=scored.seconds,
            fill=min(1.0, scored.num_slots / (scored.num_batches * engine.tokens_per_batch)),
            waste=1 - scored.num_tokens / scored.num_slots,
            tie_rate=_tie_rate(pairs, scored),
        )


class _Teacher:
    """An engine and the version of its weights; closed once it is retired and the last call has left it."""

    def __init__(self, engine: TeacherEngine, weights_version: int) -> None:
        self.engine = engine
        self.weights_version = weights_version
        self._users = 0
        self._retired = False

    @contextmanager
    def in_use(self) -> Iterator["_Teacher"]:
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._close_if_over()

    def retire(self) -> None:
        self._retired = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._retired and not self._users:
            self.engine.close()


def _load(config: dict[str, Any]) -> TeacherEngine:
    return load_engine(
        Path(config["model_dir"]),
        ScoreContract.from_dict(config["contract"]),
        device=torch.device("cuda" if config["num_gpus"] > 0 else "cpu"),
        threads=use_threads(config["num_cpus"]),
        tokens_per_batch=config["tokens_per_batch"],
        calibrations=Path(config["calibrations_dir"]) if config["calibrations_dir"] else None,
    )


def _logits(engine: TeacherEngine, query: str, documents: list[str]) -> list[float | None]:
    scored = engine.measure_pairs(engine.encoder.tokenize([query] * len(documents), documents))
    return [logit if math.isfinite(logit) else None for logit in scored.logits.tolist()]


def _same_engine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations differ in nothing that an engine is made of."""
    return {**one, "hang_after_s": 0} == {**other, "hang_after_s": 0}


def _tie_rate(pairs: TokenPairs, scored: ScoredPairs) -> float:
    """Share of pairs whose logit another pair of the same query has too: what a dtype that is too coarse does."""
    order = np.lexsort((scored.logits, pairs.query))
    query, logits = pairs.query[order], scored.logits[order]
    return float(np.mean(np.concatenate([[False], (query[1:] == query[:-1]) & (logits[1:] == logits[:-1])])))


app = serve.deployment(TeacherReplica, name=DEPLOYMENT_NAME).bind()
