"""Candidates, chunks and scorers for the tests of ranked lists."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from chunks_for_tests import CONTRACT, candidates_of, ranked_chunk
from tiny import byte_pairs, texts_of

from pipelines.corpus.dataset import Dataset
from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest
from pipelines.tokens import TokenPairs

__all__ = ["CONTRACT", "CountingScorer", "TextPairs", "candidates_of", "hash_score", "lists_of", "ranked_chunk"]


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
