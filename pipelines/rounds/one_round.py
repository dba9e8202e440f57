"""One round's training, while its lists are still being scored: what rounds of every mode do.

Enters: the round's candidates, a student, a `PairScorer`. Leaves: every list committed, and the trained step in the
round's snapshot. A thread fills the ranked lists while the caller's thread trains from those already committed; the
order of training is fixed by chunk numbers, so how fast or in which order scores arrive changes nothing.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.candidates.file import CandidatesFile
from pipelines.candidates.miner import EmbeddedCorpus, Miner
from pipelines.corpus.dataset import Dataset
from pipelines.errors import RankedListsError
from pipelines.journal import Journal
from pipelines.queries import training_queries
from pipelines.ranked.table import RankedLists
from pipelines.scoring import ScoringInputs, ToScore, score_rounds
from pipelines.spec import DistillationSpec
from pipelines.teacher.corpus_tokens import CorpusTokens
from pipelines.teacher.scorer import PairScorer
from pipelines.training.dev_set import DevSet
from pipelines.training.metric_loggers import MetricLogger
from pipelines.training.run_metrics import run_loggers
from pipelines.training.snapshots import EarlySnapshot, save_step
from pipelines.training.student_step import StudentStep
from pipelines.training.student_stream import TrainingInputs
from pipelines.training.student_task import StudentTask
from pipelines.training.student_training import train_student
from pipelines.training.worker_group import WorkerLauncher, train_with_workers

__all__ = [
    "UNTRAINED",
    "RoundInputs",
    "candidates_path",
    "learn_round",
    "scoring_inputs",
    "snapshot_path",
    "state_hash",
]

UNTRAINED = "untrained"


@dataclass(frozen=True, kw_only=True)
class RoundInputs:
    """What every round works with. `work` is the job's own folder, `lists` may be shared with other jobs."""

    job_id: str
    spec: DistillationSpec
    dataset: Dataset
    tokens: CorpusTokens
    miner: Miner
    scorer: PairScorer
    lists: RankedLists
    work: Path
    journal: Journal
    untrained: EmbeddedCorpus
    """The corpus as the student embeds it before the first round."""
    evaluation_candidates: pa.Table | None
    """Candidates of the test queries, scored after the last round's lists while the student still trains."""
    dev: DevSet | None
    """What the student is measured on while it trains."""
    dev_candidates: pa.Table | None
    """Candidates of the dev queries, whose top a ranker re-ranks to be measured; null where it does not learn."""
    dataset_folder: Path
    student_folder: Path
    """Those two are for workers, which load them anew."""
    launcher: WorkerLauncher
    """Starts training workers where the spec asks for some."""
    metrics: Path
    """Where training's curves go."""
    sinks: tuple[MetricLogger, ...] = ()
    """Told training's numbers beside the loggers that the spec names."""


def learn_round(
    inputs: RoundInputs,
    step: StudentStep,
    number: int,
    candidates: CandidatesFile,
    *,
    miner: str,
    steps_before: int,
    early: EarlySnapshot | None = None,
    look: Callable[[], None] = lambda: None,
    also: Sequence[ToScore] = (),
) -> None:
    """Score the candidates of round `number` and train `step` on them, both at once.

    Args:
        inputs: of all rounds.
        step: as the round before left it; trained in place where the job's own process trains.
        number: of the round.
        candidates: of the round.
        miner: which state of the student mined them.
        steps_before: of earlier rounds.
        early: also keep the step as it is before the round's end.
        look: called now and then meanwhile; what it raises ends the round.
        also: scored after the round's lists, while the student still trains.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring") as pool:
        lists = ToScore(number, candidates, candidates.num_pairs, miner)
        scoring = pool.submit(score_rounds, scoring_inputs(inputs), [lists, *also], stop)
        try:
            _train_student(
                inputs,
                step,
                number,
                num_rows=len(candidates),
                scoring=scoring,
                steps_before=steps_before,
                early=early,
                look=look,
            )
        except BaseException:
            stop.set()
            raise
    scoring.result()


def candidates_path(inputs: RoundInputs, number: int) -> Path:
    """Where the candidates of a round lie."""
    return inputs.work / f"candidates-{number}.parquet"


def snapshot_path(inputs: RoundInputs, number: int) -> Path:
    """Where everything that the step knows after a round is kept, there once it is over; -1 is before the first one."""
    name = f"round-{number}.safetensors" if number >= 0 else "start.safetensors"
    return inputs.work / "snapshots" / name


def state_hash(snapshot: Path) -> str:
    """Names the state of the student that a snapshot holds."""
    return hashlib.sha256(snapshot.read_bytes()).hexdigest()


def scoring_inputs(inputs: RoundInputs) -> ScoringInputs:
    """Who scores for the rounds."""
    return ScoringInputs(
        job_id=inputs.job_id,
        tokens=inputs.tokens,
        scorer=inputs.scorer,
        lists=inputs.lists,
        work=inputs.work,
        journal=inputs.journal,
        rows_per_chunk=inputs.spec.candidates.queries_per_chunk,
    )


def _train_student(
    inputs: RoundInputs,
    step: StudentStep,
    number: int,
    *,
    num_rows: int,
    scoring: "Future[None]",
    steps_before: int,
    early: EarlySnapshot | None,
    look: Callable[[], None],
) -> None:
    every_list_is_there = False

    def wait() -> None:
        nonlocal every_list_is_there
        inputs.journal.check_cancelled()
        if every_list_is_there:
            raise RankedListsError(f"round {number}: scoring has finished, but a chunk of its lists is missing")
        wait_for([scoring], timeout=0.1)
        every_list_is_there = scoring.done() and scoring.result() is None

    def watch() -> None:
        inputs.journal.check_cancelled()
        if scoring.done():
            scoring.result()  # the test lists may fail long after the last list that training needs
        look()

    if inputs.spec.training.workers:
        before = snapshot_path(inputs, number - 1)
        if number == 0:
            save_step(step, before)  # the student as it begins, warmed up or not
        task = StudentTask(
            job_id=inputs.job_id,
            spec=inputs.spec,
            dataset_folder=inputs.dataset_folder,
            student_folder=inputs.student_folder,
            lists=str(inputs.lists.location),
            work=inputs.work,
            number=number,
            num_rows=num_rows,
            before=before,
            snapshot=snapshot_path(inputs, number),
            queries=tuple(training_queries(inputs.spec, inputs.dataset)),
            steps_before=steps_before,
            metrics=inputs.metrics,
            early=early,
        )
        train_with_workers(
            task, inputs.launcher, journal=inputs.journal, sinks=inputs.sinks, scoring=scoring, watch=watch
        )
        return
    train_student(
        TrainingInputs(
            job_id=inputs.job_id,
            spec=inputs.spec,
            dataset=inputs.dataset,
            lists=inputs.lists,
            work=inputs.work,
            number=number,
            num_rows=num_rows,
            dev=inputs.dev,
            journal=inputs.journal,
            wait=wait,
            watch=watch,
            loggers=(*run_loggers(inputs.spec, inputs.metrics, inputs.job_id, inputs.journal), *inputs.sinks),
            steps_before=steps_before,
            early=early,
        ),
        step,
    )
    save_step(step, snapshot_path(inputs, number))
