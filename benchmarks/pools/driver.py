"""A job's driver in a process of its own: the real `PoolScorer` over the real handle, fed from a file of requests.

Two ways to be driven: `once` scores every request and answers with the seconds it took; `start` scores them over and
over in the background until `stop`, which lets what is on its way finish. `log` answers with one row for every call
that was answered since it was last asked: [when, pairs, tokens, CPU seconds of this process], so that any stretch of
time can be measured afterwards, without the beginning and the end. Clocks are monotonic, the same in all processes of a
machine.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pools.child import serve_words
from pools.pairs import load_requests
from pools.stretch import Row

from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest
from pipelines.tokens import TokenPairs
from services.teacher_pool import calls
from services.teacher_pool.client import PoolScorer
from services.teacher_pool.deployment import connect_pool

__all__ = ["Driver"]


class Unanswered(logging.Filter):
    """Counts the router's complaints that a queue did not tell its length in time, instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is printed."""
        is_one = record.getMessage().startswith("Failed to get queue length")
        self.count += is_one
        return not is_one


class Logged:
    """A handle that keeps when each of its calls was answered, and how long engines were at work for it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.rows: list[Row] = []
        self.engine_s: list[float] = []

    @property
    def score(self) -> "Logged":
        """The only method of a replica that a driver calls."""
        return self

    def remote(self, pairs: TokenPairs, *, job: str) -> "LoggedReply":
        """A call."""
        return LoggedReply(self._handle.score.remote(pairs, job=job), pairs, self)


class LoggedReply:
    """What stands for its answer until that is there."""

    def __init__(self, reply: Any, pairs: TokenPairs, log: Logged) -> None:
        self._reply = reply
        self._size = len(pairs), int(pairs.lengths.sum())
        self._log = log

    def result(self, *, timeout_s: float) -> Any:
        """Wait for it."""
        found = self._reply.result(timeout_s=timeout_s)
        self._log.rows.append((time.monotonic(), *self._size, time.process_time()))
        self._log.engine_s.append(found.seconds)
        return found

    def cancel(self) -> None:
        """Do not wait any more."""
        self._reply.cancel()


class Driver:
    """One job on one pool; `settings` are those of `benchmarks/pool_scaling.py`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._requests = load_requests(Path(settings["requests"]))
        self._sleeping = settings["sleeping"]
        self._scores = Path(settings["scores"]) if "scores" in settings else None
        pool = connect_pool(settings["teacher"], check=lambda: None, still_waiting=print)
        self._logged = Logged(pool.handle)
        self._scorer = PoolScorer(
            ScoreContract.from_dict(settings["contract"]),
            weights_version=0,
            job=settings["job"],
            connect=lambda: replace(pool, handle=self._logged),
            deadline_s=3600,
        )
        self._unanswered = Unanswered()
        logging.getLogger("ray.serve").addFilter(self._unanswered)
        self._stopping = threading.Event()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def once(self) -> dict[str, Any]:
        """Every request once; keeps the logits. Returns the seconds it took, and those of engines at work."""
        started = time.perf_counter()
        self._logged.engine_s.clear()
        asked = [ScoreRequest(key, pairs) for key, pairs in enumerate(self._requests)]
        answers = list(self._scorer.score_all(asked, expected_pairs=sum(map(len, self._requests))))
        seconds = time.perf_counter() - started
        for answer in answers:
            self._check(answer)
        if self._scores is not None:
            logits = {answer.key: answer.logits for answer in answers}
            np.save(self._scores, np.concatenate([logits[key] for key in range(len(self._requests))]))
        return {"seconds": seconds, "engine_s": sum(self._logged.engine_s)}

    def start(self) -> float:
        """Begin; returns when the first answer was there."""
        self._stopping.clear()
        self._begun.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._begun.wait()
        self._raise()
        return time.monotonic()

    def log(self) -> list[Row]:
        """Rows since the last time."""
        self._raise()
        count = len(self._logged.rows)
        rows = self._logged.rows[:count]
        del self._logged.rows[:count]
        return rows

    def stop(self) -> dict[str, Any]:
        """Let what is on its way finish; returns what became of the calls since this process began."""
        assert self._thread is not None  # noqa: S101 - it was started
        self._stopping.set()
        self._thread.join()
        self._raise()
        return {"calls repeated": dict(self._scorer.retried), "unanswered probes of queues": self._unanswered.count}

    def _run(self) -> None:
        try:
            for answer in self._scorer.score_all(self._endless(), expected_pairs=1_000_000):
                self._check(answer)
                self._begun.set()
        except BaseException as error:  # noqa: BLE001 - raised by whoever asks next
            self._failed = error
        self._begun.set()

    def _endless(self) -> Iterator[ScoreRequest]:
        key = 0
        while not self._stopping.is_set():
            yield ScoreRequest(key, self._requests[key % len(self._requests)])
            key += 1

    def _check(self, answer: ScoreAnswer) -> None:
        if answer.quarantined:
            raise RuntimeError(f"{len(answer.quarantined)} pairs were given up: {dict(answer.quarantined)}")
        lengths = self._requests[answer.key % len(self._requests)].lengths
        if self._sleeping and not np.array_equal(answer.logits, lengths.astype(np.float32)):
            raise RuntimeError(f"request {answer.key} got the scores of other pairs")

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed


def main() -> None:
    """Connect, say so, do what one is told."""
    settings = json.loads(sys.argv[1])
    for name in ("LEAST_PAIRS", "MOST_PAIRS", "MOST_TOKENS"):  # what larger calls would bring
        setattr(calls, name, getattr(calls, name) * settings.get("larger_calls", 1))
    ray.init(log_to_driver=False, configure_logging=False)
    driver = Driver(settings)
    words = {"ready": lambda: True, "once": driver.once, "start": driver.start, "log": driver.log, "stop": driver.stop}
    serve_words(words)


if __name__ == "__main__":
    main()
