"""The systems a result compares, as runs: BM25, a student over the whole corpus, the teacher re-ranking.

Enters: test queries and whatever ranks for them. Leaves: runs, `query_id -> doc_id -> score`, for `evaluation`.
Test labels are never seen here.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.candidates.bm25 import BM25Index
from pipelines.candidates.miner import EmbeddedCorpus
from pipelines.corpus.dataset import Dataset
from pipelines.errors import RankedListsError
from pipelines.ranked.schema import EVALUATION_ROUND
from pipelines.ranked.table import RankedLists
from pipelines.spec import BM25Spec

__all__ = ["RUN_DEPTH", "Run", "bm25_run", "pair_scores", "rerank_run", "student_run", "top_of_each"]

Run = dict[str, dict[str, float]]
RUN_DEPTH = 100
"""Documents per query in a run; R@100 needs no more."""


def student_run(corpus: EmbeddedCorpus, dataset: Dataset, query_ids: Sequence[str]) -> Run:
    """The student over the whole corpus, exact search."""
    rows, scores = corpus.search([dataset.query_text(query_id) for query_id in query_ids], RUN_DEPTH)
    return _as_run(dataset, query_ids, rows, scores)


def pair_scores(corpus: EmbeddedCorpus, dataset: Dataset, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
    """The student's score of each (query_id, doc_id), float32 [pairs]."""
    place = {query_id: i for i, query_id in enumerate(dict.fromkeys(query_id for query_id, _ in pairs))}
    queries = corpus.encoder.encode([dataset.query_text(query_id) for query_id in place], "query")
    left = queries[[place[query_id] for query_id, _ in pairs]]
    right = corpus.documents[[dataset.document_row[doc_id] for _, doc_id in pairs]]
    scores: npt.NDArray[np.float32] = (left * right).sum(axis=1)
    return scores


def bm25_run(dataset: Dataset, query_ids: Sequence[str], spec: BM25Spec) -> Run:
    """BM25 over the whole corpus."""
    index = BM25Index(dataset.passages(), k1=spec.k1, b=spec.b)
    rows, scores = index.search([dataset.query_text(query_id) for query_id in query_ids], RUN_DEPTH)
    return _as_run(dataset, query_ids, rows, scores)


def top_of_each(candidates: pa.Table, depth: int) -> pa.Table:
    """The first `depth` candidates of every query: what the teacher is asked to re-rank."""
    lists = [items[:depth] for items in candidates["candidates"].to_pylist()]
    column = pa.array(lists, type=candidates.schema.field("candidates").type)
    return candidates.set_column(candidates.schema.get_field_index("candidates"), "candidates", column)


def rerank_run(
    lists: RankedLists, job_id: str, candidates: pa.Table, *, round_number: int = EVALUATION_ROUND
) -> tuple[Run, list[tuple[str, str, float]]]:
    """The teacher over the first stage: its re-ranked top, then the first stage's remainder in its own order.

    Args:
        lists: holds the job's lists of the test queries.
        job_id: whose lists.
        candidates: the whole first stage, best first, of which the lists' candidates are the top.
        round_number: where those lists are.

    Returns:
        The run (scores are negated ranks), and (query_id, doc_id, teacher_logit) of every re-ranked pair.
    """
    run: Run = {}
    pairs: list[tuple[str, str, float]] = []
    first_stage = dict(zip(candidates["query_id"].to_pylist(), candidates["candidates"].to_pylist(), strict=True))
    for chunk in lists.chunks(job_id, round_number):
        for query_id, ranked in zip(chunk["query_id"].to_pylist(), chunk["candidates"].to_pylist(), strict=True):
            top = [item["doc_id"] for item in ranked]
            rest = [item["doc_id"] for item in first_stage[query_id] if item["doc_id"] not in set(top)]
            run[query_id] = {doc_id: -float(rank) for rank, doc_id in enumerate(top + rest)}
            pairs += [(query_id, item["doc_id"], item["teacher_logit"]) for item in ranked]
    if absent := sorted(first_stage.keys() - run.keys()):
        raise RankedListsError(f"{len(absent)} test queries have no committed list, first {absent[0]!r}")
    return run, pairs


def _as_run(
    dataset: Dataset, query_ids: Sequence[str], rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> Run:
    doc_ids = dataset.documents["doc_id"].to_pylist()
    return {
        query_id: {doc_ids[row]: float(score) for row, score in zip(rows[i], scores[i], strict=True) if row >= 0}
        for i, query_id in enumerate(query_ids)
    }
