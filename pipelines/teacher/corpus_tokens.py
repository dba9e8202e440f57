"""A data set as a teacher's tokenizer reads it: pairs of ids, no text tokenised twice.

Enters: a data set, a teacher's folder, its template. Leaves: `CorpusTokens`, backed by the token cache below
`<root>/<tokenizer and white space of the template>/<data set>/`; every job with the same texts and tokenizer shares it,
whatever the weights.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.corpus.dataset import Dataset
from pipelines.corpus.token_cache import TokenCache, Tokenize, build_token_cache
from pipelines.journal import Journal
from pipelines.model_files import tokenizer_hash
from pipelines.pretrained import load_folder_tokenizer
from pipelines.teacher.layout import PairLayout, pair_layout
from pipelines.tokens import TokenPairs, Tokens

__all__ = ["CorpusTokens", "corpus_tokens"]


class CorpusTokens:
    """Token ids of every query and document of a data set."""

    def __init__(self, dataset: Dataset, queries: TokenCache, documents: TokenCache, *, tokenizer_hash: str) -> None:
        self._dataset = dataset
        self._queries = queries
        self._documents = documents
        self._tokenizer_hash = tokenizer_hash

    def pairs(self, ids: Sequence[tuple[str, str]]) -> TokenPairs:
        """The pairs (query_id, doc_id), in order.

        Raises:
            KeyError: an id is not of the data set.
        """
        queries, query = _distinct([self._dataset.query_row[query_id] for query_id, _ in ids])
        documents, passage = _distinct([self._dataset.document_row[doc_id] for _, doc_id in ids])
        return TokenPairs(
            self._tokenizer_hash,
            Tokens.of(self._queries[row] for row in queries),
            Tokens.of(self._documents[row] for row in documents),
            query,
            passage,
        )

    def document_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every document, in row order."""
        return self._documents.lengths()

    def query_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every query, in row order."""
        return self._queries.lengths()


def _distinct(rows: Sequence[int]) -> tuple[list[int], npt.NDArray[np.int64]]:
    found = {row: place for place, row in enumerate(dict.fromkeys(rows))}
    return list(found), np.array([found[row] for row in rows], dtype=np.int64)


def corpus_tokens(root: Path, dataset: Dataset, teacher: Path, *, template: str, journal: Journal) -> CorpusTokens:
    """The tokens of `dataset` for the teacher in the folder `teacher`; tokenises what the cache below `root` lacks.

    Raises:
        ModelError: the template cannot be assembled from tokens of its parts.
        DataError: the cache cannot be written.
    """
    tokenizer = load_folder_tokenizer(teacher)
    layout, name = pair_layout(tokenizer, template), tokenizer_hash(teacher)
    folder = root / _key(name, layout) / dataset.fingerprint
    queries = dataset.queries["text"].to_pylist()
    total = len(queries) + len(dataset.documents)

    def cache(kind: str, texts: Sequence[str], tokenize: Tokenize, before: int) -> tuple[TokenCache, int]:
        fresh = 0

        def on_part(new: int, there: int) -> None:
            nonlocal fresh
            fresh = new
            journal.check_cancelled()
            journal.progress(texts_tokenized=before + there, texts_total=total)

        return build_token_cache(folder / kind, texts, tokenize, on_part=on_part), fresh

    query_cache, new_queries = cache("queries", queries, layout.query_tokens(tokenizer), 0)
    document_cache, new_documents = cache(
        "documents", dataset.passages(), layout.passage_tokens(tokenizer), len(queries)
    )
    new = new_queries + new_documents
    journal.event(
        "tokens.ready",
        f"{new} texts tokenised for the teacher, {total - new} taken from the cache",
        tokenized=new,
        reused=total - new,
    )
    return CorpusTokens(dataset, query_cache, document_cache, tokenizer_hash=name)


def _key(name: str, layout: PairLayout) -> str:
    parts = json.dumps([name, layout.query_affixes, layout.passage_affixes])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
