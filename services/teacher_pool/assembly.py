"""Assembly: scores of calls become answers to requests again, each under one version of the weights.

Enters: a call and the scores of its pairs, in any order of calls. Leaves: the answers that this completes, and the
parts that must be scored again: when the teacher got new weights while a request was under way, its older scores are
not comparable with its newer ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipelines.teacher.scorer import ScoreAnswer
from services.teacher_pool.attempts import Scores
from services.teacher_pool.calls import Call, Part

__all__ = ["Assembly"]


@dataclass(eq=False)
class _Collected:
    logits: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int64]
    there: npt.NDArray[np.bool_]
    quarantined: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, size: int) -> "_Collected":
        return cls(np.full(size, np.nan, np.float32), np.full(size, -1), np.zeros(size, bool))


class Assembly:
    """Requests under way. Not for several threads at once.

    Args:
        weights_version: what an answer without any score is filed under.
    """

    def __init__(self, weights_version: int) -> None:
        self._weights_version = weights_version
        self._under_way: dict[int, _Collected] = {}

    def add(self, call: Call, scores: Scores) -> tuple[list[ScoreAnswer], list[Call]]:
        """The answers that are complete with the scores of `call`, and what must be scored again."""
        answers, again = [], []
        start = 0
        for part in call.parts:
            here = slice(start, start + len(part))
            start += len(part)
            collected = self._under_way.setdefault(part.request.key, _Collected.of(len(part.request.pairs)))
            collected.logits[part.rows] = scores.logits[here]
            collected.versions[part.rows] = scores.versions[here]
            collected.there[part.rows] = True
            for row, why in scores.quarantined.items():
                if here.start <= row < here.stop:
                    collected.quarantined[int(part.rows[row - here.start])] = why
            if not collected.there.all():
                continue
            if (old := self._outdated(collected)).size:
                collected.there[old] = False
                again.append(Call((Part(part.request, old),)))
            else:
                answers.append(self._answer(part.request.key, self._under_way.pop(part.request.key)))
        return answers, again

    def _outdated(self, collected: _Collected) -> npt.NDArray[np.int64]:
        good = _scored(collected)
        newest = collected.versions[good].max(initial=-1)
        return np.flatnonzero(good & (collected.versions < newest))

    def _answer(self, key: int, collected: _Collected) -> ScoreAnswer:
        good = _scored(collected)
        version = int(collected.versions[good][0]) if good.any() else self._weights_version
        return ScoreAnswer(key, collected.logits, weights_version=version, quarantined=collected.quarantined)


def _scored(collected: _Collected) -> npt.NDArray[np.bool_]:
    good = np.ones(len(collected.logits), bool)
    good[_rows(list(collected.quarantined))] = False
    return good


def _rows(rows: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(rows, dtype=np.int64)
