"""The dev queries and the pool they are searched in: small enough to measure a student every hundred steps.

Enters: candidates mined for the dev queries before training, and their judgements. Leaves: measures of a student over
that pool, exact search. The pool is what BM25 and the untrained student found for any dev query, and every document
judged for one: easier than the whole corpus, so its numbers are for comparing states of one student and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.corpus.dataset import Dataset
from pipelines.evaluation.metrics import evaluate, means
from pipelines.student.model import DualEncoder
from pipelines.whole_files import write_json

__all__ = ["DevMeasures", "DevSet", "dev_measures", "dev_ndcg"]

_DEPTH = 10


@dataclass(frozen=True)
class DevSet:
    """Ids only; texts are the data set's."""

    qrels: dict[str, dict[str, int]]
    """query_id -> doc_id -> grade."""
    pool: tuple[str, ...]
    """doc_ids, each once."""

    @classmethod
    def of(cls, qrels: Mapping[str, Mapping[str, int]], candidates: pa.Table) -> "DevSet":
        """Judged queries, and the candidates table mined for them."""
        found = (item["doc_id"] for items in candidates["candidates"].to_pylist() for item in items)
        judged = (doc_id for grades in qrels.values() for doc_id in grades)
        return cls({query: dict(grades) for query, grades in qrels.items()}, tuple(dict.fromkeys([*judged, *found])))

    def save(self, path: Path) -> None:
        """Write it as JSON, whole."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "DevSet":
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["qrels"], tuple(data["pool"]))


@dataclass(frozen=True)
class DevMeasures:
    """Of a student over the dev pool, means over queries."""

    quality: dict[str, float]
    """nDCG@10, RR@10, R@5: 0 to 1."""
    entropy: float
    """Nats, of softmax(score / temperature) over the best documents that nobody judged relevant: how widely the student
    spreads over its negatives (AR2, section 4.4, takes the first 15)."""
    negatives: dict[str, list[str]]
    """query_id -> doc_ids of those, best first."""


def dev_ndcg(student: DualEncoder, dataset: Dataset, dev: DevSet) -> float:
    """Mean nDCG@10 of the student as it is now, 0 to 1."""
    scores = _scores(student, dataset, dev)
    return means(evaluate(dev.qrels, _run(scores, dev), ("nDCG@10",)))["nDCG@10"]


def dev_measures(
    student: DualEncoder, dataset: Dataset, dev: DevSet, *, negatives: int, temperature: float
) -> DevMeasures:
    """What a round reports of its student.

    Args:
        student: as it is now.
        dataset: texts.
        dev: queries, judgements, pool.
        negatives: so many of the best documents without a positive judgement count.
        temperature: divides scores in it.
    """
    scores = _scores(student, dataset, dev)
    found = means(evaluate(dev.qrels, _run(scores, dev), ("nDCG@10", "RR@10", "R@5")))
    entropies: list[float] = []
    hardest: dict[str, list[str]] = {}
    for row, (query_id, grades) in enumerate(dev.qrels.items()):
        others = np.array([i for i, doc_id in enumerate(dev.pool) if grades.get(doc_id, 0) <= 0], dtype=np.int64)
        best = others[np.argsort(-scores[row][others], kind="stable")[:negatives]]
        hardest[query_id] = [dev.pool[i] for i in best]
        entropies.append(_entropy(scores[row][best].astype(np.float64) / temperature))
    return DevMeasures(found, float(np.mean(entropies)), hardest)


def _entropy(logits: npt.NDArray[np.float64]) -> float:
    weights = np.exp(logits - logits.max())
    p = weights / weights.sum()
    return float(-(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum())


def _scores(student: DualEncoder, dataset: Dataset, dev: DevSet) -> npt.NDArray[np.float32]:
    """[dev queries, pool]."""
    queries = student.encode([dataset.query_text(query_id) for query_id in dev.qrels], "query")
    documents = student.encode([dataset.passage(doc_id) for doc_id in dev.pool], "document")
    scores: npt.NDArray[np.float32] = queries @ documents.T
    return scores


def _run(scores: npt.NDArray[np.float32], dev: DevSet) -> dict[str, dict[str, float]]:
    return {query_id: _top(scores[row], dev.pool) for row, query_id in enumerate(dev.qrels)}


def _top(scores: npt.NDArray[np.float32], pool: Sequence[str]) -> dict[str, float]:
    best = np.argsort(-scores, kind="stable")[:_DEPTH]
    return {pool[row]: float(scores[row]) for row in best}
