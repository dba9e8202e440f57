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

import numpy as np
import pyarrow as pa
from safetensors.torch import load_file, save_file

from pipelines.candidates.file import CandidatesFile, num_pairs
from pipelines.candidates.miner import EmbeddedCorpus, Miner, embed_corpus, mine_once
from pipelines.corpus.dataset import Dataset
from pipelines.errors import RankedListsError
from pipelines.journal import Journal
from pipelines.ranked.schema import EVALUATION_ROUND
from pipelines.ranked.table import RankedLists
from pipelines.scoring import ScoringInputs, ToScore, score_rounds
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder
from pipelines.teacher.corpus_tokens import CorpusTokens
from pipelines.teacher.scorer import PairScorer
from pipelines.training.dev_set import DevSet
from pipelines.training.student_step import StudentStep, needs_previous_student
from pipelines.training.student_training import TrainingInputs, new_step, train_student

__all__ = ["RoundInputs", "run_rounds", "training_queries"]

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


def training_queries(spec: DistillationSpec, dataset: Dataset) -> list[str]:
    """Labelled and unlabelled training queries in the seeded order that defines chunks and the first epoch."""
    data = spec.dataset
    labelled = dataset.labelled_queries(data.train_split) if data.train_split else []
    splits = [split for split in (data.train_split, data.dev_split, data.test_split) if split]
    unlabelled = dataset.unlabelled_queries(*splits) if data.unlabelled.use else []
    order = np.random.default_rng((spec.seed, 1)).permutation(len(unlabelled))
    queries = labelled + [unlabelled[i] for i in order[: data.unlabelled.max_queries]]
    return [queries[i] for i in np.random.default_rng((spec.seed, 2)).permutation(len(queries))]


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
    step = new_step(student, inputs.spec, previous=previous)
    for number in range(inputs.spec.rounds):
        snapshot = inputs.work / "snapshots" / f"round-{number}.safetensors"
        if not snapshot.is_file():
            _run_round(inputs, step, number)
            snapshot.parent.mkdir(parents=True, exist_ok=True)
            scratch = snapshot.with_suffix(".partial")
            save_file({name: value.contiguous().clone() for name, value in step.state_dict().items()}, scratch)
            scratch.rename(snapshot)
            shutil.rmtree(inputs.work / "checkpoints" / f"round-{number}", ignore_errors=True)
        step.load_state_dict(load_file(snapshot))
    return step.outcome


def _run_round(inputs: RoundInputs, step: StudentStep, number: int) -> None:
    spec, dataset = inputs.spec, inputs.dataset
    queries = training_queries(spec, dataset)
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
    snapshot = inputs.work / "snapshots" / f"round-{round_number - 1}.safetensors"
    return hashlib.sha256(snapshot.read_bytes()).hexdigest()


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
        ),
        step,
    )
