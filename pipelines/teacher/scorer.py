"""PairScorer: what rounds need of a teacher, wherever it runs; and the simplest one, in this process.

Enters: requests, each a list of pairs under a key. Leaves: answers in any order. The pool of `services.teacher_pool`
implements the same protocol with many replicas.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipelines.devices import resolve_device
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.engine import TeacherEngine, load_engine
from pipelines.tokens import TokenPairs

__all__ = ["InProcessHost", "InProcessScorer", "PairScorer", "RankerScorer", "ScoreAnswer", "ScoreRequest"]


@dataclass(frozen=True)
class ScoreRequest:
    """Pairs to score together."""

    key: int
    pairs: TokenPairs


@dataclass(frozen=True, eq=False)
class ScoreAnswer:
    """The scores of one request, all made by one version of the weights."""

    key: int
    logits: npt.NDArray[np.float32]
    """Raw, one per pair."""
    weights_version: int
    quarantined: Mapping[int, str] = field(default_factory=dict)
    """Row -> why this pair cannot be scored (it kills or breaks every replica); its logit means nothing."""


class PairScorer(Protocol):
    """Scores requests under one contract; the weights may be refreshed, an answer says which were used."""

    @property
    def contract(self) -> ScoreContract:
        """How the logits are made."""
        ...

    @property
    def weights_version(self) -> int:
        """The newest version of the weights; 0 for a teacher that never changes."""
        ...

    def score_all(self, requests: Iterable[ScoreRequest], *, expected_pairs: int) -> Iterator[ScoreAnswer]:
        """One answer per request, as they finish; pulls `requests` lazily, a bounded number ahead.

        Args:
            requests: what to score.
            expected_pairs: how many pairs all requests have together, about: a pool is sized by it.
        """
        ...


class RankerScorer(PairScorer, Protocol):
    """A `PairScorer` whose weights a job may replace: those of its own ranker."""

    def publish(self, folder: Path, contract: ScoreContract, weights_version: int) -> None:
        """From now on scores are made by the model in `folder`; returns when older ones cannot come any more."""
        ...


class InProcessScorer:
    """A `RankerScorer` over an engine in this process, one request after the other.

    `load` gives the engine of a model folder and its contract. It is called with the first pair that really needs a
    teacher: a job whose scores are all known never loads one.
    """

    def __init__(
        self, contract: ScoreContract, load: Callable[[Path, ScoreContract], TeacherEngine], folder: Path
    ) -> None:
        self._contract = contract
        self._load = load
        self._serves = (folder, contract)
        self._weights_version = 0
        self._engine: TeacherEngine | None = None

    @property
    def contract(self) -> ScoreContract:
        """What the first version of the weights is held to."""
        return self._contract

    @property
    def weights_version(self) -> int:
        """Of what was published last."""
        return self._weights_version

    def publish(self, folder: Path, contract: ScoreContract, weights_version: int) -> None:
        """Drop the engine; the next pair loads one of the new weights."""
        self.close()
        self._engine = None
        self._serves, self._weights_version = (folder, contract), weights_version

    def score_all(
        self,
        requests: Iterable[ScoreRequest],
        *,
        expected_pairs: int,  # noqa: ARG002 - for pools
    ) -> Iterator[ScoreAnswer]:
        """Answers in the order of the requests; `expected_pairs` changes nothing here."""
        for request in requests:
            if not len(request.pairs):
                yield ScoreAnswer(request.key, np.empty(0, dtype=np.float32), weights_version=self._weights_version)
                continue
            if self._engine is None:
                self._engine = self._load(*self._serves)
            logits = self._engine.score_pairs(request.pairs)
            yield ScoreAnswer(request.key, logits, weights_version=self._weights_version)

    def close(self) -> None:
        """End the engine's threads."""
        if self._engine is not None:
            self._engine.close()


class InProcessHost:
    """Hosts a teacher in this process: for notebooks, debugging, and machines without a cluster.

    Args:
        tokens_per_batch: of the engine; None lets a short calibration find it.
        calibrations: where what calibrations find is kept.
    """

    def __init__(self, *, tokens_per_batch: int | None = None, calibrations: Path | None = None) -> None:
        self._tokens_per_batch = tokens_per_batch
        self._calibrations = calibrations
        self._threads = torch.get_num_threads()  # of the caller: the thread that will load the engine has its own

    @property
    def device_type(self) -> str:
        """Where this process computes."""
        return resolve_device().type

    @contextmanager
    def host(self, folder: Path, contract: ScoreContract) -> Iterator[RankerScorer]:
        """The teacher in `folder`, loaded when it is first needed and dropped when the context closes."""

        def load(folder: Path, contract: ScoreContract) -> TeacherEngine:
            return load_engine(
                folder,
                contract,
                device=torch.device(self.device_type),
                threads=self._threads,
                tokens_per_batch=self._tokens_per_batch,
                calibrations=self._calibrations,
            )

        scorer = InProcessScorer(contract, load, folder)
        try:
            yield scorer
        finally:
            scorer.close()
