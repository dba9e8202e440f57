"""The next round's candidates, mined while this round's student still learns.

Enters: a snapshot that appears some steps before a round ends. Leaves: `mined-<n>.parquet`. A thread embeds the corpus
with a copy of the student as the snapshot has it, and mines; whoever comes too early waits. Without a snapshot, or in a
run that was resumed after it, mining happens when it is asked for, from the same weights.

Embeddings are kept under the hash of the state that made them: a state that was embedded already, because nothing was
learned in between or a run died while mining, is not embedded again.
"""

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
from safetensors.torch import load_file

from pipelines.candidates.file import CandidatesFile
from pipelines.candidates.miner import embed_corpus, mine_once
from pipelines.errors import Cancelled
from pipelines.queries import adversarial_queries
from pipelines.rounds.one_round import UNTRAINED, RoundInputs, snapshot_path, state_hash
from pipelines.training.snapshots import EarlySnapshot
from pipelines.training.student_step import StudentStep

__all__ = ["IndexRefresh"]


class IndexRefresh:
    """Mines for round after round.

    Args:
        inputs: of all rounds.
        step: the job's; a copy of it holds other states.
        steps_early: how long before a round's end its student is taken for the next round's index.
    """

    def __init__(self, inputs: RoundInputs, step: StudentStep, *, steps_early: int) -> None:
        self._inputs, self._step, self._steps_early = inputs, step, steps_early
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index")
        self._running: dict[int, Future[CandidatesFile]] = {}
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True  # a mine that is under way ends with its next batch
        self._pool.shutdown(wait=True, cancel_futures=True)

    def early(self, number: int, *, steps_before: int, num_steps: int) -> EarlySnapshot | None:
        """What round `number` has to keep for the next one, if anything."""
        if not self._steps_early or number == self._inputs.spec.rounds.count - 1:
            return None
        after = steps_before + max(1, num_steps - self._steps_early)
        return EarlySnapshot(self._inputs.work / "snapshots" / f"index-{number + 1}-step-{after}.safetensors", after)

    def look(self, number: int) -> Callable[[], None]:
        """Called while round `number` learns: begins the next one's index once its student is there."""

        def look() -> None:
            following = number + 1
            running = self._running.get(following)
            if running is None and self._early_snapshot(following) and not self._mined_path(following).is_file():
                other = copy.deepcopy(self._step)
                self._running[following] = self._pool.submit(self._mine, following, other)
            elif running is not None and running.done():
                running.result()  # not only when the next round asks

        return look

    def miner(self, number: int) -> str:
        """Which state of the student the candidates of round `number` were mined with."""
        source = self._source(number)
        return state_hash(source) if source else UNTRAINED

    def candidates(self, number: int, *, trained_steps: int) -> CandidatesFile:
        """The mined candidates of round `number`, whose predecessor ended after `trained_steps` steps."""
        began = time.monotonic()
        running = self._running.pop(number, None)
        found = running.result() if running else self._mine(number, self._step)
        if number:
            early = self._early_snapshot(number)
            stale = trained_steps - int(early.stem.rsplit("-", 1)[-1]) if early else 0
            waited = time.monotonic() - began
            self._inputs.journal.event(
                "index.refreshed",
                f"round {number}: mined with the student of {stale} steps before; nobody learned for {waited:.1f} s",
                round=number,
                stale_steps=stale,
                trained_steps=trained_steps,
                waited_s=round(waited, 3),
            )
        return found

    def mined(self, number: int) -> CandidatesFile:
        """What was mined for round `number`, until it is forgotten."""
        return CandidatesFile(self._mined_path(number))

    def forget(self, number: int) -> None:
        """Delete what was mined for round `number`; the sample of it is kept."""
        self._mined_path(number).unlink(missing_ok=True)

    def _mine(self, number: int, step: StudentStep) -> CandidatesFile:
        """From the source's state; `step` is given it, and may be the job's own only where it has it already."""
        inputs = self._inputs
        spec, dataset = inputs.spec, inputs.dataset
        source = self._source(number)
        folder = inputs.work / "embeddings"

        def mine() -> Iterator[pa.Table]:
            corpus = inputs.untrained
            if source:
                if source == self._early_snapshot(number) and step is self._step:
                    other = copy.deepcopy(step)
                    other.load_state_dict(load_file(source))
                else:
                    step.load_state_dict(load_file(source))
                    other = step
                path = folder / f"index-{state_hash(source)[:16]}.npy"
                for old in folder.glob("index-*.npy"):
                    if old != path:
                        old.unlink()
                corpus = embed_corpus(other.outcome, dataset, path=path, check=self._check)
            for block in inputs.miner.mine_blocks(
                adversarial_queries(spec, dataset, number),
                corpus=corpus,
                judged=dataset.judged_rows(spec.dataset.train_split) if spec.dataset.train_split else {},
                scratch=folder / f"queries-{number}.npy",
            ):
                self._check()
                yield block

        return mine_once(self._mined_path(number), mine)

    def _source(self, number: int) -> Path | None:
        """The snapshot whose student mines for round `number`; None: the student before the job."""
        if number == 0:
            return None
        return self._early_snapshot(number) or snapshot_path(self._inputs, number - 1)

    def _early_snapshot(self, number: int) -> Path | None:
        """Its name says after which step it was taken."""
        return next(self._inputs.work.glob(f"snapshots/index-{number}-step-*.safetensors"), None)

    def _check(self) -> None:
        self._inputs.journal.check_cancelled()
        if self._over:
            raise Cancelled("the round has failed; mining for the next one stops with it")

    def _mined_path(self, number: int) -> Path:
        return self._inputs.work / f"mined-{number}.parquet"
