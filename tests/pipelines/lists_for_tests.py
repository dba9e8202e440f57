"""Candidates, chunks and scorers for the tests of ranked lists."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from tiny import byte_pairs, texts_of

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.corpus.dataset import Dataset
from pipelines.corpus.tokens import TokenPairs
from pipelines.ranked.schema import rank_candidates
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest

CONTRACT = ScoreContract(model_id="fake", revision=None, weights_hash="0" * 64, max_length=48, dtype="fp32")


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


def ranked_chunk(chunk_id: int, queries: list[str], *, job_id: str = "job", round_number: int = 0) -> pa.Table:
    """A chunk of two-document lists whose logits name query and document."""
    table = candidates_of({query_id: ["d1", "d2"] for query_id in queries})
    logits = np.array([chunk_id + position / 100 for position in range(2 * len(queries))], dtype=np.float32)
    return rank_candidates(
        table, logits, job_id=job_id, round_number=round_number, chunk_id=chunk_id, weights_version=0
    )


class CountingScorer:
    """Scores by text lengths, remembers every pair it was sent, and answers in the order of `arrange`."""

    contract = CONTRACT

    def __init__(self, *, weights_version: int = 0) -> None:
        self.weights_version = weights_version
        self.pairs: list[tuple[str, str]] = []

    def arrange(self, requests: list[ScoreRequest]) -> list[ScoreRequest]:
        return requests

    def score_all(self, requests: Iterable[ScoreRequest], *, expected_pairs: int) -> Iterator[ScoreAnswer]:
        assert expected_pairs >= 0
        for request in self.arrange([replace(request) for request in requests]):
            texts = texts_of(request.pairs)
            self.pairs += texts
            logits = np.array([hash_score(*pair) for pair in texts], dtype=np.float32)
            yield ScoreAnswer(request.key, logits, weights_version=self.weights_version)


class TextPairs:
    """Gives the texts of pairs as bytes, where a job gives token ids."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def pairs(self, ids: Sequence[tuple[str, str]]) -> TokenPairs:
        return byte_pairs([(self._dataset.query_text(query), self._dataset.passage(doc)) for query, doc in ids])


def hash_score(query: str, passage: str) -> float:
    """Some number that depends on both texts."""
    return float(sum(map(ord, query)) % 17 - sum(map(ord, passage)) % 23)


def lists_of(dataset: Dataset, num_queries: int, width: int = 3) -> dict[str, list[str]]:
    """`num_queries` queries of the data set with `width` documents each."""
    queries = dataset.queries["query_id"].to_pylist()[:num_queries]
    docs = dataset.documents["doc_id"].to_pylist()
    return {query_id: [docs[(7 * i + j) % len(docs)] for j in range(width)] for i, query_id in enumerate(queries)}
