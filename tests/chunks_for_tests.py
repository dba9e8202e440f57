"""Candidates and ranked chunks for tests, without importing torch: processes that are killed should start fast."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy.special import softmax

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.ranked.schema import rank_candidates
from pipelines.teacher.contract import ScoreContract

CONTRACT = ScoreContract(model_id="fake", revision=None, weights_hash="0" * 64, max_length=48, dtype="fp32")


def confidence_of(logits: Sequence[float]) -> float:
    """Softmax probability of the best of them."""
    return float(softmax(np.asarray(logits, dtype=np.float64)).max()) if len(logits) else 0.0


def candidates_of(lists: dict[str, list[str]]) -> pa.Table:
    """A candidates table: query -> documents, nothing judged, BM25 ranks in list order."""
    rows = [
        {
            "query_id": query_id,
            "candidates": [
                {"doc_id": doc, "student_score": None, "bm25_rank": rank, "dense_rank": None, "relevance": None}
                for rank, doc in enumerate(docs)
            ],
        }
        for query_id, docs in lists.items()
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)


def ranked_chunk(
    chunk_id: int, queries: list[str], *, job_id: str = "job", round_number: int = 0, miner: str | None = None
) -> pa.Table:
    """A chunk of two-document lists whose logits name query and document."""
    table = candidates_of({query_id: ["d1", "d2"] for query_id in queries})
    logits = np.array([chunk_id + position / 100 for position in range(2 * len(queries))], dtype=np.float32)
    return rank_candidates(
        table, logits, job_id=job_id, round_number=round_number, chunk_id=chunk_id, weights_version=0, miner=miner
    )
