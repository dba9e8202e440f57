"""One replica of a teacher: a `TeacherEngine` behind Ray Serve.

Enters: pairs, one call at a time through the engine (a second call may wait, so that the next batch is already here).
Leaves: raw logits and the fingerprint of the contract they were made under. Which teacher to be comes as `user_config`,
so that new weights can be loaded in place, without a new process.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray import serve

from pipelines.corpus.tokens import TokenPairs
from pipelines.devices import use_threads
from pipelines.pretrained import quiet_loading
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.engine import TeacherEngine, load_engine

__all__ = ["DEPLOYMENT_NAME", "app"]

DEPLOYMENT_NAME = "TeacherReplica"


@serve.deployment(name=DEPLOYMENT_NAME)
class TeacherReplica:
    """Scores pairs; configured by the `user_config` of `services.teacher_pool.control.render`."""

    def __init__(self) -> None:
        quiet_loading()
        self._engine: TeacherEngine | None = None
        self._configured: dict[str, Any] = {}
        self._turn = asyncio.Lock()

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Become the teacher that `config` describes; calls in progress finish with the old weights."""
        async with self._turn:
            if config != self._configured:
                before = self._engine
                self._engine = await asyncio.to_thread(
                    load_engine,
                    Path(config["model_dir"]),
                    ScoreContract.from_dict(config["contract"]),
                    device=torch.device("cuda" if config["num_gpus"] > 0 else "cpu"),
                    threads=use_threads(config["num_cpus"]),
                    tokens_per_batch=config["tokens_per_batch"],
                    calibrations=Path(config["calibrations_dir"]) if config["calibrations_dir"] else None,
                )
                if before is not None:
                    before.close()
                self._configured = config

    async def score(self, pairs: TokenPairs) -> tuple[str, npt.NDArray[np.float32]]:
        """(contract fingerprint, raw fp32 logits [n]) of tokenised pairs."""
        async with self._turn:
            if self._engine is None:
                raise RuntimeError("the replica was asked to score before it was configured")
            logits = await asyncio.to_thread(self._engine.score_pairs, pairs)
            return self._engine.contract.fingerprint, logits


app = TeacherReplica.bind()  # type: ignore[attr-defined] # the decorator makes it a Deployment
