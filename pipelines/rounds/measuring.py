"""How both players of the adversarial game stand: after a round, and before all of them.

Enters: the student's step, the round's mined candidates and committed lists, the ranker's lists of the dev queries.
Leaves: `RoundFigures`. The dev pool and the ranker's dev lists are the same in all rounds, so their rows compare.
"""

import json
from typing import Any

from pipelines.candidates.file import num_pairs
from pipelines.comparison import rerank_run, top_of_each
from pipelines.evaluation.metrics import evaluate, means
from pipelines.ranked.schema import dev_round
from pipelines.rounds.figures import RoundFigures, hardness, list_overlap, share_kept
from pipelines.rounds.index_refresh import IndexRefresh
from pipelines.rounds.one_round import UNTRAINED, RoundInputs
from pipelines.scoring import ToScore
from pipelines.spec import DistillationSpec
from pipelines.training.dev_set import dev_measures
from pipelines.training.student_step import StudentStep
from pipelines.whole_files import write_json

__all__ = ["dev_lists", "figures_of_round", "in_words", "players_before"]


def dev_lists(inputs: RoundInputs, version: int) -> list[ToScore]:
    """What a version of the ranker has to score to be measured; nothing without a dev set."""
    if inputs.dev_candidates is None:
        return []
    dev = top_of_each(inputs.dev_candidates, inputs.spec.evaluation.rerank_depth)
    return [ToScore(dev_round(version), dev, num_pairs(dev), UNTRAINED)]


def players_before(inputs: RoundInputs, step: StudentStep) -> RoundFigures | None:
    """Both players at the start, measured once: later, `step` is another one."""
    if inputs.dev is None:
        return None
    path = inputs.work / "rounds" / "before.json"
    if not path.is_file():
        write_json(path, RoundFigures(round=-1, weights_version=0, **_players(inputs, step, -1, version=0)).to_dict())
    return RoundFigures.from_dict(json.loads(path.read_text(encoding="utf-8")))


def figures_of_round(
    inputs: RoundInputs, step: StudentStep, index: IndexRefresh, number: int, version: int
) -> RoundFigures:
    """Of round `number`, which is over but for this.

    Args:
        inputs: of all rounds.
        step: as the round left it.
        index: still has what was mined for this round and the one before.
        number: of the round.
        version: of the ranker's weights in it.
    """
    overlap = list_overlap(index.mined(number - 1).blocks(), index.mined(number).blocks()) if number else None
    return RoundFigures(
        round=number,
        weights_version=version,
        list_overlap=overlap,
        hardness=hardness(inputs.lists.chunks(inputs.job_id, number)),
        **_players(inputs, step, number, version),
    )


def _players(inputs: RoundInputs, step: StudentStep, number: int, version: int) -> dict[str, Any]:
    """The fields of `RoundFigures` that the dev queries give."""
    if inputs.dev is None or inputs.dev_candidates is None:
        return {}
    measured = dev_measures(
        step.outcome,
        inputs.dataset,
        inputs.dev,
        negatives=inputs.spec.training.candidates_per_query - 1,
        temperature=_temperature(inputs.spec),
    )
    run, _ = rerank_run(inputs.lists, inputs.job_id, inputs.dev_candidates, round_number=dev_round(version))
    ranker = means(evaluate(inputs.dev.qrels, run, tuple(measured.quality)))
    earlier, negatives = (inputs.work / "rounds" / f"negatives-{which}.json" for which in (number - 1, number))
    write_json(negatives, measured.negatives)
    overlap = share_kept(json.loads(earlier.read_text(encoding="utf-8")), measured.negatives) if number >= 0 else None
    return {"student": measured.quality, "ranker": ranker, "entropy": measured.entropy, "dev_overlap": overlap}


def in_words(figures: RoundFigures) -> str:
    """The main ones, for a log."""
    found: dict[str, Any] = {
        "student dev nDCG@10": figures.student and figures.student["nDCG@10"],
        "ranker dev nDCG@10": figures.ranker and figures.ranker["nDCG@10"],
        "entropy": figures.entropy,
        "share of candidates that the round before had": figures.list_overlap,
        "share of the dev queries' best negatives that stayed": figures.dev_overlap,
        "negatives above their positive for the ranker": figures.hardness and figures.hardness.ranker_fooled,
    }
    return f"round {figures.round}: " + ", ".join(
        f"{name} {value:.3f}" for name, value in found.items() if value is not None
    )


def _temperature(spec: DistillationSpec) -> float:
    return next(term.temperature for term in spec.training.objective if term.name in {"ar2", "ar2_code_compat"})
