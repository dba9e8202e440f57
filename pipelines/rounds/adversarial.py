"""Adversarial rounds (AR2, arXiv 2110.03611): the student learns to find what fools the ranker, the ranker not to be.

Enters: what every round works with, and a ranker that is scored by. Leaves: the trained student and the trained ranker.

    for each round:
        mine with the student -> sample negatives -> the ranker learns from them -> its weights are published
        -> they score the same lists -> the student learns from the scores -> the index is made anew

The order is that of the official code; the paper's has the student first. Optimizers and schedules of both go on from
round to round. A round is over when its state is on disk, and names which steps and weights belong together: both
models' checkpoints, the snapshot, the version. Killed anywhere, a job goes on in the round and the half it was in.

With `evaluation.dev`, both players are measured after every round; the game ends when the student has not become better
for `patience` rounds, and the best round's student and ranker are what the job leaves.

The index may be made from the student as it was some steps before its round ended (`refresh_steps_early`), while it
goes on learning: which student that is depends on step numbers alone, so a run that is resumed finds the same
negatives, and how stale an index is, is known beforehand.
"""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from pipelines.candidates.file import CandidatesFile, num_pairs
from pipelines.candidates.miner import mine_once
from pipelines.candidates.negatives import sampled_negatives
from pipelines.model_files import weights_hash
from pipelines.ranked.schema import BEFORE_ROUND, EVALUATION_ROUND
from pipelines.rounds.distillation import first_step
from pipelines.rounds.figures import RoundFigures
from pipelines.rounds.index_refresh import IndexRefresh
from pipelines.rounds.measuring import dev_lists, figures_of_round, in_words, players_before
from pipelines.rounds.one_round import (
    UNTRAINED,
    RoundInputs,
    candidates_path,
    learn_round,
    scoring_inputs,
    snapshot_path,
)
from pipelines.rounds.ranker_round import learn_ranker_round, ranker_version
from pipelines.scoring import ToScore, score_rounds
from pipelines.spec import AdversarialSpec
from pipelines.student.model import DualEncoder
from pipelines.teacher.contract import ScoreContract
from pipelines.training.checkpoints import newest_step
from pipelines.training.settings import steps_of_round, student_checkpoints
from pipelines.training.student_step import StudentStep
from pipelines.whole_files import write_json

__all__ = ["AdversarialOutcome", "RankerStart", "RoundState", "run_adversarial_rounds"]

Publish = Callable[[Path, ScoreContract, int], None]


@dataclass(frozen=True)
class RankerStart:
    """The ranker before all rounds: a model folder, and the contract of the scores it gives."""

    folder: Path
    contract: ScoreContract


@dataclass(frozen=True)
class RoundState:
    """What belongs together at the end of a round; written last."""

    student_steps: int
    weights_version: int
    weights_hash: str
    """Of the ranker, as its lists name it by version."""
    miner: str
    """Which state of the student found the round's candidates."""
    figures: RoundFigures

    @classmethod
    def load(cls, path: Path) -> "RoundState":
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "figures": RoundFigures.from_dict(data["figures"])})

    def save(self, path: Path) -> None:
        """Write it as JSON, whole."""
        write_json(path, asdict(self))


@dataclass(frozen=True)
class AdversarialOutcome:
    """What the game leaves."""

    student: DualEncoder
    """The last round's, or the best one's where a dev set says which that is."""
    ranker: Path
    """Folder of the same round's ranker."""
    before: RoundFigures | None
    """How both stood before the first round; null without a dev set."""
    rounds: tuple[RoundState, ...]


@dataclass(frozen=True)
class _Game:
    """What stays the same through all rounds."""

    inputs: RoundInputs
    settings: AdversarialSpec
    start: RankerStart
    publish: Publish
    step: StudentStep
    index: IndexRefresh


def run_adversarial_rounds(
    inputs: RoundInputs, student: DualEncoder, start: RankerStart, publish: Publish
) -> AdversarialOutcome:
    """Train `student` in place, and the ranker beside it, through the rounds of the spec.

    Args:
        inputs: of all rounds; its scorer is the ranker's.
        student: as it was before the job.
        start: the ranker, version 0 of its weights.
        publish: (folder, contract, version): from now on every score is made by these weights.
    """
    settings, work = inputs.spec.rounds.adversarial, inputs.work
    if settings is None:
        raise ValueError("the spec's rounds are not adversarial")
    _score(inputs, _test_lists(inputs, BEFORE_ROUND) + dev_lists(inputs, version=0))
    step = first_step(inputs, student)
    before = players_before(inputs, step)
    rounds: list[RoundState] = []
    with IndexRefresh(inputs, step, steps_early=settings.refresh_steps_early) as index:
        game = _Game(inputs, settings, start, publish, step, index)
        for number in range(inputs.spec.rounds.count):
            path = work / "rounds" / f"round-{number}.json"
            if not path.is_file():
                _run_round(game, number, rounds).save(path)
            rounds.append(RoundState.load(path))
            step.load_state_dict(load_file(snapshot_path(inputs, number)))
            index.forget(number - 1)
            if _is_over(inputs, rounds):
                break
    best = _best(rounds)
    if inputs.dev is not None:
        step.load_state_dict(load_file(snapshot_path(inputs, best)))
        _score_test_lists(game, rounds, best)
    index.forget(len(rounds) - 1)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    ranker = ranker_version(work, rounds[best].weights_version)
    return AdversarialOutcome(step.outcome, ranker, before, tuple(rounds))


def _run_round(game: _Game, number: int, earlier: Sequence[RoundState]) -> RoundState:
    inputs, step, index = game.inputs, game.step, game.index
    spec, work = inputs.spec, inputs.work
    student_steps = earlier[-1].student_steps if earlier else 0

    def sampled() -> CandidatesFile:
        mined = index.candidates(number, trained_steps=student_steps)
        count = spec.training.candidates_per_query - 1
        drawn = sampled_negatives(mined.blocks(), game.settings, count=count, seed=spec.seed, round_number=number)
        return mine_once(path, lambda: drawn)

    path = candidates_path(inputs, number)
    candidates = CandidatesFile(path) if path.is_file() else sampled()
    folder = learn_ranker_round(inputs, game.start.folder, candidates, number)
    version, found_hash, miner = number + 1, weights_hash(folder), index.miner(number)
    game.publish(folder, replace(game.start.contract, weights_hash=found_hash), version)
    last = number == spec.rounds.count - 1
    learn_round(
        inputs,
        step,
        number,
        candidates,
        miner=miner,
        steps_before=student_steps,
        early=index.early(number, steps_before=student_steps, num_steps=steps_of_round(spec, len(candidates))),
        look=index.look(number),
        also=dev_lists(inputs, version) + (_test_lists(inputs) if last and inputs.dev is None else []),
    )
    step.load_state_dict(load_file(snapshot_path(inputs, number)))
    figures = figures_of_round(inputs, step, index, number, version)
    inputs.journal.event("round.finished", in_words(figures), **figures.to_dict())
    return RoundState(newest_step(work / student_checkpoints(spec, number)), version, found_hash, miner, figures)


def _best(rounds: Sequence[RoundState]) -> int:
    """The round of the best student on the dev queries, the first of equals; without them, the last round."""
    values = [state.figures.student["nDCG@10"] if state.figures.student else None for state in rounds]
    measured = [value for value in values if value is not None]
    return values.index(max(measured)) if measured else len(rounds) - 1


def _is_over(inputs: RoundInputs, rounds: Sequence[RoundState]) -> bool:
    patience = inputs.spec.evaluation.dev.patience if inputs.spec.evaluation.dev else None
    worse = len(rounds) - 1 - _best(rounds)
    if patience is None or worse < patience or len(rounds) == inputs.spec.rounds.count:
        return False
    message = f"round {_best(rounds)} had the best student on the dev queries; {worse} rounds since had none better"
    inputs.journal.event("rounds.stopped", message, best_round=_best(rounds), rounds=len(rounds))
    return True


def _score_test_lists(game: _Game, rounds: Sequence[RoundState], best: int) -> None:
    """By the ranker that the job leaves; an earlier one is published anew, so that versions only rise."""
    state, newest = rounds[best], rounds[-1].weights_version
    version = newest if best == len(rounds) - 1 else newest + 1
    folder = ranker_version(game.inputs.work, state.weights_version)
    game.publish(folder, replace(game.start.contract, weights_hash=state.weights_hash), version)
    _score(game.inputs, _test_lists(game.inputs))


def _test_lists(inputs: RoundInputs, round_number: int = EVALUATION_ROUND) -> list[ToScore]:
    test = inputs.evaluation_candidates
    return [] if test is None else [ToScore(round_number, test, num_pairs(test), UNTRAINED)]


def _score(inputs: RoundInputs, lists: Sequence[ToScore]) -> None:
    if lists:
        score_rounds(scoring_inputs(inputs), lists, threading.Event())
