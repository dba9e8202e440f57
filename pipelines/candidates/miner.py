"""Miner: the candidate sources of one job over one data set, built once and asked every round.

Enters: query ids and the corpus as the current student embeds it. Leaves: a candidates table. Embedding the corpus is
by far the dearest part of mining, so it is a value of its own (`EmbeddedCorpus`) that callers make once per student
state and share between mining and evaluation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.candidates.bm25 import BM25Index
from pipelines.candidates.dense import top_k_inner_product
from pipelines.candidates.union import mine
from pipelines.corpus.dataset import Dataset
from pipelines.spec import CandidatesSpec
from pipelines.student.model import DualEncoder

__all__ = ["EmbeddedCorpus", "Miner", "embed_corpus", "mine_once"]


@dataclass(frozen=True)
class EmbeddedCorpus:
    """All documents as one state of an encoder sees them, float32 [documents, dim], and that encoder for queries.

    The encoder must not be trained while this is in use.
    """

    encoder: DualEncoder
    documents: npt.NDArray[np.float32]

    def search(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact inner-product search: rows int64 and scores float32, both [queries, top_k]."""
        found: tuple[np.ndarray, np.ndarray] = top_k_inner_product(
            self.encoder.encode(queries, "query"),
            self.documents,
            min(top_k, len(self.documents)),
            device=self.encoder.device,
        )
        return found


def embed_corpus(encoder: DualEncoder, dataset: Dataset) -> EmbeddedCorpus:
    """Embed every document with the encoder as it is now."""
    return EmbeddedCorpus(encoder, encoder.encode(dataset.passages(), "document"))


class Miner:
    """BM25 and dense search over `dataset`; `encoder` replaces the student as dense source when the spec names one."""

    def __init__(self, dataset: Dataset, spec: CandidatesSpec, *, encoder: DualEncoder | None = None) -> None:
        self._dataset = dataset
        self._spec = spec
        self._passages = dataset.passages()
        self._bm25 = BM25Index(self._passages, k1=spec.bm25.k1, b=spec.bm25.b) if spec.bm25 else None
        self._fixed = embed_corpus(encoder, dataset) if encoder else None

    def mine(
        self,
        query_ids: Sequence[str],
        *,
        corpus: EmbeddedCorpus,
        judged: Mapping[str, Mapping[int, int]],
        depth: int | None = None,
    ) -> pa.Table:
        """Candidates of `query_ids`, in that order.

        Args:
            query_ids: whose candidates.
            corpus: the documents as the current student embeds them; unused when the job names a fixed encoder.
            judged: query_id -> document row -> relevance; {} for test queries, whose labels must not leak in.
            depth: overrides both sources' top_k and max_candidates (evaluation looks deeper than training).
        """
        texts = [self._dataset.query_text(query_id) for query_id in query_ids]
        bm25_rows = dense = None
        if self._bm25 and self._spec.bm25:
            bm25_rows, _ = self._bm25.search(texts, depth or self._spec.bm25.top_k)
        if self._spec.dense:
            dense = (self._fixed or corpus).search(texts, depth or self._spec.dense.top_k)
        return mine(
            query_ids,
            judged=judged,
            doc_ids=self._dataset.documents["doc_id"].to_pylist(),
            passages=self._passages,
            bm25_rows=bm25_rows,
            dense=dense,
            max_candidates=depth or self._spec.max_candidates,
        )


def mine_once(path: Path, mine: Callable[[], pa.Table]) -> pa.Table:
    """The table in `path`; mined and written (whole, by renaming) if it is not there yet."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".partial")
        pq.write_table(mine(), scratch)
        scratch.rename(path)
    return pq.read_table(path)
