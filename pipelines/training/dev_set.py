"""The dev queries and the pool they are searched in: small enough to measure a student every hundred steps.

Enters: candidates mined for the dev queries before training, and their judgements. Leaves: nDCG@10 of a student over
that pool, exact search. The pool is what BM25 and the untrained student found for any dev query, and every document
judged for one: easier than the whole corpus, so its numbers are for comparing states of one student and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.corpus.dataset import Dataset
from pipelines.evaluation.metrics import evaluate, means
from pipelines.student.model import DualEncoder

__all__ = ["DevSet", "dev_ndcg"]

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
        scratch = path.with_suffix(".partial")
        scratch.write_text(json.dumps(asdict(self)), encoding="utf-8")
        scratch.rename(path)

    @classmethod
    def load(cls, path: Path) -> "DevSet":
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["qrels"], tuple(data["pool"]))


def dev_ndcg(student: DualEncoder, dataset: Dataset, dev: DevSet) -> float:
    """Mean nDCG@10 of the student as it is now, 0 to 1."""
    query_ids = list(dev.qrels)
    queries = student.encode([dataset.query_text(query_id) for query_id in query_ids], "query")
    documents = student.encode([dataset.passage(doc_id) for doc_id in dev.pool], "document")
    scores = queries @ documents.T
    run = {query_id: _top(scores[row], dev.pool) for row, query_id in enumerate(query_ids)}
    return means(evaluate(dev.qrels, run, ("nDCG@10",)))["nDCG@10"]


def _top(scores: np.ndarray, pool: Sequence[str]) -> dict[str, float]:
    best = np.argsort(-scores, kind="stable")[:_DEPTH]
    return {pool[row]: float(scores[row]) for row in best}
