"""Lexical candidates: BM25 in Lucene's variant, exact and deterministic.

Enters: passages, then queries. Leaves: document rows and scores per query. Scoring is bm25s (arXiv
2407.03618); the choice of the top k is ours, because equal scores must fall the same way on every machine: by
lower row.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
import Stemmer

__all__ = ["BM25Index"]


class BM25Index:
    """BM25 over passages, with the English Snowball stemmer and English stop words of bm25s.

    Args:
        passages: one text per document; its position is the document's row. At least one.
        k1: term-frequency saturation, above 0.
        b: length normalisation, 0 to 1.
    """

    def __init__(self, passages: Sequence[str], *, k1: float = 0.9, b: float = 0.4) -> None:
        if not passages:
            raise ValueError("BM25Index needs at least one passage")
        self.num_documents = len(passages)
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        tokens = self._tokens(passages)
        # bm25s cannot index a corpus without a single term; such a corpus simply matches nothing.
        self._has_terms = any(tokens)
        if self._has_terms:
            self._index.index(tokens, show_progress=False)

    def search(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best documents of each query, best first, ties by lower row.

        Args:
            queries: query texts.
            top_k: at least 1; more than there are documents means all of them.

        Returns:
            rows int64 [queries, k] and scores float32 [queries, k] with k = min(top_k, num_documents).
            Where fewer than k documents share a term with the query, row -1 and score 0.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        width = min(top_k, self.num_documents)
        rows = np.full((len(queries), width), -1, dtype=np.int64)
        scores = np.zeros((len(queries), width), dtype=np.float32)
        for position, tokens in enumerate(self._tokens(queries)):
            known = self._index.get_tokens_ids(tokens) if self._has_terms else []
            if not known:
                continue
            found, values = _top(self._index.get_scores_from_ids(known), width)
            rows[position, : len(found)] = found
            scores[position, : len(found)] = values
        return rows, scores

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="english", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return tokens


def _top(scores: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    found = np.flatnonzero(scores > 0)
    if len(found) > width:
        # Everything at or above the width-th score, ties included, so that the sort below decides them.
        threshold = np.partition(scores[found], len(found) - width)[len(found) - width]
        found = found[scores[found] >= threshold]
    order = np.lexsort((found, -scores[found]))[:width]
    return found[order], scores[found[order]]
