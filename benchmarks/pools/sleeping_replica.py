"""A replica that only pretends: it sleeps for as long as a teacher of a given speed would compute. A SIMULATION.

Enters: what the real replica is asked: `score(pairs, job=...)`. Leaves: what it answers, under the contract of its
`user_config`; the logit of a pair is its number of tokens, so that the driver can tell whether answers were mixed up.
Everything around the forward pass is the real thing: turns, metrics, messages, Serve's configuration. It imports no
torch: 64 of these fit in the memory of a small machine, and they leave its cores to what is measured.
"""

import asyncio
from typing import Any

import numpy as np
from ray import serve

from pipelines.teacher.contract import ScoreContract
from pipelines.tokens import TokenPairs
from services.teacher_pool.messages import DEPLOYMENT_NAME, ScoreReply
from services.teacher_pool.metrics import ReplicaMetrics
from services.teacher_pool.turns import Turns

__all__ = ["SleepingReplica", "app"]


class SleepingReplica:
    """Stands where `services.teacher_pool.replica.TeacherReplica` does."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._metrics = ReplicaMetrics(serve.get_replica_context().app_name)
        self._fingerprint, self._version, self._tokens_per_second = "", 0, 1.0

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """As the real one's, with `tokens_per_second` besides."""
        self._fingerprint = ScoreContract.from_dict(config["contract"]).fingerprint
        self._version, self._tokens_per_second = config["weights_version"], config["tokens_per_second"]

    async def score(self, pairs: TokenPairs, *, job: str = "") -> ScoreReply:
        """Sleeps when it is the turn of `job`."""
        lengths = pairs.lengths
        tokens = int(lengths.sum())
        waiting = self._turns.turn(job, tokens)
        self._metrics.queued(job, self._turns.depth + 1)
        async with waiting:
            self._metrics.queued(job, self._turns.depth)
            seconds = tokens / self._tokens_per_second
            await asyncio.sleep(seconds)
        self._metrics.scored(job, pairs=len(pairs), tokens=tokens, seconds=seconds, fill=1.0, waste=0.0, tie_rate=0.0)
        return ScoreReply(
            self._fingerprint, self._version, lengths.astype(np.float32), num_tokens=tokens, seconds=seconds
        )


app = serve.deployment(SleepingReplica, name=DEPLOYMENT_NAME).bind()
