"""The rounds of distillation: mine -> score -> train -> refresh, written once against small protocols.

Enters: a data set, a student, a miner, a `PairScorer`, where to keep things. Leaves: the trained student, and on
disk per round its candidates, ranked lists, checkpoints and snapshot. Every step finds what an earlier, killed run left
and goes on there. Rounds in which the teacher learns, too, are in `rounds.adversarial`.
"""

import copy
import shutil
from collections.abc import Iterator

import pyarrow as pa
from safetensors.torch import load_file

from pipelines.candidates.file import CandidatesFile, num_pairs
from pipelines.candidates.miner import embed_corpus, mine_once
from pipelines.queries import queries_of_round, training_queries
from pipelines.ranked.schema import EVALUATION_ROUND
from pipelines.rounds.one_round import UNTRAINED, RoundInputs, candidates_path, learn_round, snapshot_path, state_hash
from pipelines.scoring import ToScore
from pipelines.student.model import DualEncoder
from pipelines.training.fitting import needs_previous_student
from pipelines.training.settings import loop_settings
from pipelines.training.student_step import StudentStep
from pipelines.training.student_training import new_step

__all__ = ["first_step", "run_rounds"]


def run_rounds(inputs: RoundInputs, student: DualEncoder) -> DualEncoder:
    """Train `student`, which comes as it was before the job, in place through all rounds of the spec.

    What the objective learns goes on from round to round, as the student does; optimizer and schedule start anew.

    Returns:
        The student to evaluate and export: `student`, or its average over steps where the spec asks for that.
    """
    step = first_step(inputs, student)
    for number in range(inputs.spec.rounds.count):
        snapshot = snapshot_path(inputs, number)
        if not snapshot.is_file():
            _run_round(inputs, step, number)
            shutil.rmtree(inputs.work / "checkpoints" / f"round-{number}", ignore_errors=True)
        step.load_state_dict(load_file(snapshot))
    return step.outcome


def first_step(inputs: RoundInputs, student: DualEncoder) -> StudentStep:
    """The step of the job around `student` before any round."""
    previous = None
    if needs_previous_student(inputs.spec.training.objective):
        previous = copy.deepcopy(student).eval().requires_grad_(False)
    queries = training_queries(inputs.spec, inputs.dataset)
    return new_step(student, inputs.spec, previous=previous, queries=queries)


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

    candidates = mine_once(candidates_path(inputs, number), mine)
    (embeddings / f"round-{number}.npy").unlink(missing_ok=True)
    miner = state_hash(snapshot_path(inputs, number - 1)) if number else UNTRAINED
    test, last = inputs.evaluation_candidates, number == spec.rounds.count - 1
    learn_round(
        inputs,
        step,
        number,
        candidates,
        miner=miner,
        steps_before=_steps_before(inputs, number),
        also=[ToScore(EVALUATION_ROUND, test, num_pairs(test), UNTRAINED)] if last and test is not None else (),
    )


def _steps_before(inputs: RoundInputs, number: int) -> int:
    """Steps of earlier rounds, as planned: a curve goes on where theirs ended."""
    earlier = [CandidatesFile(candidates_path(inputs, before)) for before in range(number)]
    return sum(loop_settings(inputs.spec, len(candidates)).total_steps for candidates in earlier)
