"""What a round of the adversarial game came to: how hard its negatives were, how both players stand afterwards.

Enters: the round's mined candidates and those of the round before, its committed lists, measures on the dev queries.
Leaves: `RoundFigures`, plain numbers that the job's events, its report and its stopping rule read.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Hardness", "RoundFigures", "hardness", "list_overlap", "share_kept"]


@dataclass(frozen=True)
class Hardness:
    """Of the sampled negatives of a round, over queries that have a positive; null where no query has what it needs."""

    student_margin: float | None
    """Score of the positive minus mean score of the negatives, by the student that mined them: small or negative is
    hard. Only of candidates that the student found itself."""
    ranker_margin: float | None
    """The same in logits of the ranker that has just learned from them."""
    ranker_fooled: float | None
    """Share of negatives which that ranker puts above every positive, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """One row of a report. Dev measures are null without `evaluation.dev`."""

    round: int
    """-1: before all rounds."""
    weights_version: int
    """Of the ranker after the round."""
    student: dict[str, float] | None = None
    """nDCG@10, RR@10 and R@5 of the student on the dev pool after the round."""
    ranker: dict[str, float] | None = None
    """nDCG@10, RR@10 and R@5 of the ranker on the dev queries' fixed candidates after the round."""
    entropy: float | None = None
    """Of the student's distribution over a dev query's best negatives, nats."""
    list_overlap: float | None = None
    """Share of a query's mined candidates that it had in the round before, too; null in the first one, and where the
    two rounds have no query in common."""
    dev_overlap: float | None = None
    """Share of a dev query's best negatives in the dev pool that were among them before the round, too."""
    hardness: Hardness | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RoundFigures":
        """Inverse of `to_dict`."""
        found = data["hardness"]
        return cls(**{**data, "hardness": None if found is None else Hardness(**found)})


def list_overlap(earlier: Iterable[pa.Table], later: Iterable[pa.Table]) -> float | None:
    """Mean share of a query's later candidates that it had before; over queries of both; positives do not count.

    Args:
        earlier: blocks of the candidates schema.
        later: likewise.
    """
    return share_kept(dict(_mined(earlier)), dict(_mined(later)))


def share_kept(earlier: Mapping[str, Collection[str]], later: Mapping[str, Collection[str]]) -> float | None:
    """Mean share of a query's later doc_ids that it had before, over queries of both; null where there are none."""
    shares = [
        len(set(found) & set(earlier[query_id])) / len(found)
        for query_id, found in later.items()
        if found and query_id in earlier
    ]
    return _mean(shares)


def hardness(lists: Iterable[pa.Table]) -> Hardness:
    """How hard the negatives of committed lists were, for the student that found them and the ranker that scored them.

    Args:
        lists: blocks with columns `query_id` and `candidates`, of the ranked schema.
    """
    student: list[float] = []
    ranker: list[float] = []
    fooled: list[float] = []
    for block in lists:
        for items in block["candidates"].to_pylist():
            positives = [item for item in items if (item["relevance"] or 0) > 0]
            negatives = [item for item in items if (item["relevance"] or 0) <= 0]
            found_by_student = _margin(positives, negatives, "student_score")
            student += [] if found_by_student is None else [found_by_student]
            if positives and negatives:
                best = max(item["teacher_logit"] for item in positives)
                logits = _numbers(negatives, "teacher_logit")
                ranker.append(best - float(logits.mean()))
                fooled.append(float((logits > best).mean()))
    return Hardness(_mean(student), _mean(ranker), _mean(fooled))


def _margin(positives: list[dict[str, Any]], negatives: list[dict[str, Any]], field: str) -> float | None:
    above, below = _numbers(positives, field), _numbers(negatives, field)
    return float(above.max() - below.mean()) if above.size and below.size else None


def _numbers(items: list[dict[str, Any]], field: str) -> npt.NDArray[np.float64]:
    return np.array([item[field] for item in items if item[field] is not None], dtype=np.float64)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _mined(blocks: Iterable[pa.Table]) -> Iterator[tuple[str, set[str]]]:
    for block in blocks:
        for query_id, items in zip(block["query_id"].to_pylist(), block["candidates"].to_pylist(), strict=True):
            yield query_id, {item["doc_id"] for item in items if (item["relevance"] or 0) <= 0}
