"""Which candidates of a list take part in a step, and which one is the positive.

Enters: a `RankedRow`, a rule of positives, a strategy for the negatives. Leaves: a `ChosenList`.

    teacher_top  the teacher's best: the hardest by the word of the one who teaches
    student_top  what the student that mined the list liked best: its own mistakes first
    mixed        one half the teacher's best, the other half at random
    simans       at random, likelier the nearer to the positive (SimANS, EMNLP 2022)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.objectives.simans import draw_simans
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import RankedRow
from pipelines.spec import NegativeSampling

__all__ = ["ChosenList", "choose"]

_MIXED = NegativeSampling()


@dataclass(frozen=True)
class ChosenList:
    """The candidates of one query that take part in a step, in list order."""

    query_id: str
    doc_ids: tuple[str, ...]
    teacher_logits: npt.NDArray[np.float32]
    judged_positive: npt.NDArray[np.bool_]
    positive: int
    """Column of the positive, or -1 if the query has none."""
    other_positives: tuple[str, ...]
    """The query's judged positives but that one, in the list or not; never to serve as negatives for this query."""


def choose(
    row: RankedRow,
    *,
    width: int,
    rule: PositiveRule,
    rng: np.random.Generator,
    negatives: NegativeSampling = _MIXED,
) -> ChosenList | None:
    """At most `width` candidates: as many positives as the rule allows, the others drawn as `negatives` says.

    Returns None for a row from which nothing can be learned: fewer than two candidates.
    """
    relevance = row.relevance if rule.use_labels else np.full_like(row.relevance, -1)
    gold = np.flatnonzero(relevance > 0)
    if len(gold):
        positive_row = int(rng.choice(gold))
    elif rule.teacher_top and len(row.doc_ids) and row.confidence >= rule.min_confidence:
        positive_row = int(row.teacher_logits.argmax())
    else:
        positive_row = -1
    kept = [positive_row] if positive_row >= 0 else []
    if rule.per_query > 1:
        kept += rng.permutation(gold[gold != positive_row])[: rule.per_query - 1].tolist()
    others = np.array([i for i in range(len(row.doc_ids)) if i != positive_row and i not in gold], dtype=np.int64)
    drawn = _draw(row, others, positive_row, room=width - len(kept), negatives=negatives, rng=rng)
    chosen = np.sort(np.concatenate([drawn, kept]).astype(np.int64))
    if len(chosen) < 2:
        return None
    return ChosenList(
        query_id=row.query_id,
        doc_ids=tuple(row.doc_ids[i] for i in chosen),
        teacher_logits=row.teacher_logits[chosen],
        judged_positive=relevance[chosen] > 0,
        positive=int(np.flatnonzero(chosen == positive_row)[0]) if positive_row >= 0 else -1,
        other_positives=tuple(row.doc_ids[i] for i in gold if i != positive_row),
    )


def _draw(
    row: RankedRow,
    others: npt.NDArray[np.int64],
    positive_row: int,
    *,
    room: int,
    negatives: NegativeSampling,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """At most `room` of the rows `others`, which stand in list order."""
    if negatives.strategy == "simans" and positive_row >= 0:
        places = draw_simans(
            row.teacher_logits[others],
            float(row.teacher_logits[positive_row]),
            count=room,
            rng=rng,
            a=negatives.a,
            b=negatives.b,
            form=negatives.form,
        )
        return others[places]
    if negatives.strategy == "teacher_top":
        return others[:room]
    if negatives.strategy == "student_top":
        scores = np.nan_to_num(row.student_scores[others], nan=-np.inf)  # what the student did not find comes last
        return others[np.argsort(-scores, kind="stable")[:room]]
    hardest = others[: (room + 1) // 2]
    return np.concatenate([hardest, rng.permutation(others[len(hardest) :])[: room - len(hardest)]])
