"""A teacher replica that misbehaves on request; Ray's workers import it by name (see `pool_cluster`).

Everything but the misbehaviour is the real replica: engine, turns, in-place weights, health check. What to do is read
from files in the folder `FAULTS`, so that a test can change its mind while replicas run:

    slow        seconds that each batch call takes longer
    die-NUMBER  a replica that is about to score takes one of these away and dies, at a random point of the call
    hang        likewise, but never comes back
"""

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from ray import serve

from pipelines.teacher.engine import ScoredPairs, TeacherEngine
from pipelines.tokens import TokenPairs
from services.teacher_pool.messages import DEPLOYMENT_NAME
from services.teacher_pool.replica import TeacherReplica

FAULTS = Path(os.environ["DUALDISTILL_TEST_FAULTS"])
DEADLY_WORD = "chronic"
"""A passage with this word kills every replica that scores it."""


class FaultyReplica(TeacherReplica):
    """The real replica, with accidents."""

    def _measure(self, engine: TeacherEngine, pairs: TokenPairs, still_alive: Callable[[], None]) -> ScoredPairs:
        deadly = engine.encoder.tokenizer.get_vocab()[DEADLY_WORD]
        accident = accidents(poisoned=bool((pairs.passages.values == deadly).any()))

        def before_batch() -> None:
            self._turns.pause_for_people()
            still_alive()
            accident()

        return engine.measure_pairs(pairs, before_batch=before_batch)


def accidents(*, poisoned: bool) -> Callable[[], None]:
    """What happens before the batches of one call: nothing, mostly."""
    dies = poisoned or (random.random() < 0.5 and any(take(path) for path in FAULTS.glob("die-*")))  # noqa: S311
    hangs = take(FAULTS / "hang")
    at = random.choice((0, 1))  # noqa: S311 - before the first batch or the second
    batches = 0

    def before_batch() -> None:
        nonlocal batches
        if not batches:
            time.sleep(float((FAULTS / "slow").read_text()) if (FAULTS / "slow").exists() else 0.0)
        if dies and (batches >= at or poisoned):
            os._exit(1)
        if hangs:
            time.sleep(3600)
        batches += 1

    return before_batch


def take(path: Path) -> bool:
    """Whether this process is the one that got the file."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


app = serve.deployment(FaultyReplica, name=DEPLOYMENT_NAME).bind()
