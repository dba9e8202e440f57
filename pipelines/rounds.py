"""The rounds: mine -> score -> train -> refresh, written once against small protocols.

Enters: a data set, a student, a miner, a `PairScorer`, where to keep things. Leaves: the trained student, and on
disk per round its candidates, ranked lists, checkpoints and snapshot. A thread fills the round's ranked lists while
the caller's thread trains from those already committed; the order of training is fixed by chunk numbers, so how fast
or in which order scores arrive changes nothing. Every step finds what an earlier, killed run left and goes on there.
"""

import copy
import hashlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from safetensors.torch import load_file

from pipelines.candidates.file import CandidatesFile, num_pairs
from pipelines.candidates.miner import EmbeddedCorpus, Miner, embed_corpus, mine_once
from pipelines.corpus.dataset import Dataset
from pipelines.errors import RankedListsError
from pipelines.journal import Journal
from pipelines.queries import queries_of_round, training_queries
from pipelines.ranked.schema import EVALUATION_ROUND
from pipelines.ranked.table import RankedLists
from pipelines.scoring import ScoringInputs, ToScore, score_rounds
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder
from pipelines.teacher.corpus_tokens import CorpusTokens
from pipelines.teacher.scorer import PairScorer
from pipelines.training.dev_set import DevSet
from pipelines.training.fitting import needs_previous_student
from pipelines.training.metric_loggers import MetricLogger
from pipelines.training.run_metrics import run_loggers
from pipelines.training.settings import loop_settings
from pipelines.training.student_step import StudentStep
from pipelines.training.student_stream import TrainingInputs
from pipelines.training.student_training import new_step, train_student
from pipelines.training.training_task import TrainingTask, save_step
from pipelines.training.worker_group import WorkerLauncher, train_with_workers

__all__ = ["RoundInputs", "run_rounds"]

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
    dataset_folder: Path
    student_folder: Path
    """Those two are for workers, which load them anew."""
    launcher: WorkerLauncher
    """Starts training workers where the spec asks for some."""
    metrics: Path
    """Where training's curves go."""
    sinks: tuple[MetricLogger, ...] = ()
    """Told training's numbers beside the loggers that the spec names."""


def run_rounds(inputs: RoundInputs, student: DualEncoder) -> DualEncoder:
    """Train `student`, which comes as it was before the job, in place through all rounds of the spec.

    What the objective learns goes on from round to round, as the student does; optimizer and schedule start anew.

    Returns:
        The student to evaluate and export: `student`, or its average over steps where the spec asks for that.
    """
    training = inputs.spec.training
    previous = None
    if needs_previous_student(training.objective):
        previous = copy.deepcopy(student).eval().requires_grad_(False)
    step = new_step(student, inputs.spec, previous=previous, queries=training_queries(inputs.spec, inputs.dataset))
    for number in range(inputs.spec.rounds):
        snapshot = _snapshot(inputs, number)
        if not snapshot.is_file():
            _run_round(inputs, step, number)
            shutil.rmtree(inputs.work / "checkpoints" / f"round-{number}", ignore_errors=True)
        step.load_state_dict(load_file(snapshot))
    return step.outcome


def _run_round(inputs: RoundInputs, step: StudentStep, number: int) -> None:
    spec, dataset = inputs.spec, inputs.dataset
    queries = queries_of_round(spec, dataset, step, number, work=inputs.work, journal=inputs.journal)
    split = spec.dataset.train_split if spec.training.use_labels else None
    judged = dataset.judged_rows(split) if split else {}

    embeddings = inputs.work / "embeddings"

    def mine() -> Iterator[pa.Table]:
        corpus = inputs.untrained
        if number:
            corpus = embed_corpus(step.outcome, dataset, path=embeddings / f"round-{number}.npy")
        return inputs.miner.mine_blocks(queries, corpus=corpus, judged=judged, scratch=embeddings / "queries.npy")

    candidates = mine_once(inputs.work / f"candidates-{number}.parquet", mine)
    (embeddings / f"round-{number}.npy").unlink(missing_ok=True)
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring") as pool:
        scoring = pool.submit(score_rounds, _scoring_inputs(inputs), _to_score(inputs, candidates, number), stop)
        try:
            _train_student(inputs, step, number, num_rows=len(candidates), scoring=scoring)
        except BaseException:
            stop.set()
            raise
    scoring.result()


def _to_score(inputs: RoundInputs, candidates: CandidatesFile, number: int) -> list[ToScore]:
    """The round, and the test queries with the last one: nothing waits for their lists."""
    rounds = [ToScore(number, candidates, candidates.num_pairs, _miner(inputs, number))]
    if number == inputs.spec.rounds - 1 and (test := inputs.evaluation_candidates) is not None:
        rounds.append(ToScore(EVALUATION_ROUND, test, num_pairs(test), UNTRAINED))
    return rounds


def _scoring_inputs(inputs: RoundInputs) -> ScoringInputs:
    return ScoringInputs(
        job_id=inputs.job_id,
        tokens=inputs.tokens,
        scorer=inputs.scorer,
        lists=inputs.lists,
        work=inputs.work,
        journal=inputs.journal,
        rows_per_chunk=inputs.spec.candidates.queries_per_chunk,
    )


def _miner(inputs: RoundInputs, round_number: int) -> str:
    """Which state of the student mined a round's candidates: the hash of the snapshot before it."""
    if round_number == 0:
        return UNTRAINED
    return hashlib.sha256(_snapshot(inputs, round_number - 1).read_bytes()).hexdigest()


def _snapshot(inputs: RoundInputs, number: int) -> Path:
    """Where everything that the step knows after a round is kept, there once it is over; -1 is before the first one."""
    name = f"round-{number}.safetensors" if number >= 0 else "start.safetensors"
    return inputs.work / "snapshots" / name


def _train_student(
    inputs: RoundInputs, step: StudentStep, number: int, *, num_rows: int, scoring: "Future[None]"
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

    if inputs.spec.training.workers:
        before = _snapshot(inputs, number - 1)
        if number == 0:
            save_step(step, before)  # the student as it begins, warmed up or not
        task = TrainingTask(
            job_id=inputs.job_id,
            spec=inputs.spec,
            dataset_folder=inputs.dataset_folder,
            student_folder=inputs.student_folder,
            lists=str(inputs.lists.location),
            work=inputs.work,
            number=number,
            num_rows=num_rows,
            before=before,
            snapshot=_snapshot(inputs, number),
            queries=tuple(training_queries(inputs.spec, inputs.dataset)),
            steps_before=_steps_before(inputs, number),
            metrics=inputs.metrics,
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
            steps_before=_steps_before(inputs, number),
        ),
        step,
    )
    save_step(step, _snapshot(inputs, number))


def _steps_before(inputs: RoundInputs, number: int) -> int:
    """Steps of earlier rounds, as planned: a curve goes on where theirs ended."""
    earlier = [CandidatesFile(inputs.work / f"candidates-{before}.parquet") for before in range(number)]
    return sum(loop_settings(inputs.spec, len(candidates)).total_steps for candidates in earlier)
