"""Miner: the candidate sources of one job over one data set, built once and asked every round.

Enters: query ids and the corpus as the current student embeds it. Leaves: candidates, block by block of queries, so
that memory does not grow with their number. Embedding the corpus is by far the dearest part of mining, so it is a value
of its own (`EmbeddedCorpus`) that callers make once per student state and share between mining and evaluation.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.candidates.bm25 import BM25Index
from pipelines.candidates.dense import QUERY_CHUNK, top_k_inner_product
from pipelines.candidates.embeddings import let_go, write_embeddings
from pipelines.candidates.file import CandidatesFile, write_candidates
from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.candidates.union import mine
from pipelines.corpus.dataset import Dataset
from pipelines.spec import CandidatesSpec
from pipelines.student.model import DualEncoder, TextKind

__all__ = ["QUERIES_PER_BLOCK", "EmbeddedCorpus", "Miner", "embed_corpus", "mine_once"]

QUERIES_PER_BLOCK = 4 * QUERY_CHUNK
"""A multiple of `QUERY_CHUNK`: blocks change no bit of what is found."""


@dataclass(frozen=True)
class EmbeddedCorpus:
    """All documents as one state of an encoder sees them, float32 [documents, dim], and that encoder for queries.

    `documents` may be a read-only memory map. The encoder must not be trained while this is in use.
    """

    encoder: DualEncoder
    documents: npt.NDArray[np.float32]

    def search(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact inner-product search: rows int64 and scores float32, both [queries, top_k]."""
        return self.search_embedded(self.encoder.encode(queries, "query"), top_k)

    def search_embedded(self, queries: npt.NDArray[np.float32], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` with the queries' embeddings, float32 [queries, dim]."""
        found: tuple[np.ndarray, np.ndarray] = top_k_inner_product(
            queries, self.documents, min(top_k, len(self.documents)), device=self.encoder.device
        )
        return found


def embed_corpus(
    encoder: DualEncoder,
    dataset: Dataset,
    *,
    path: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> EmbeddedCorpus:
    """Embed every document with the encoder as it is now.

    Args:
        encoder: the student, or a fixed encoder.
        dataset: whose documents.
        path: where the embeddings are kept, instead of in memory; a `.npy` file that names this state of the encoder:
            what an earlier attempt of the same job put there is taken.
        check: called before each batch that is kept on disk; what it raises ends the embedding.
    """
    return EmbeddedCorpus(encoder, _embedded(encoder, dataset.passages(), "document", path, check))


class Miner:
    """BM25 and dense search over `dataset`; `encoder` replaces the student as dense source when the spec names one.

    Its embeddings are kept at `path`, as those of `embed_corpus`.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: CandidatesSpec,
        *,
        encoder: DualEncoder | None = None,
        path: Path | None = None,
    ) -> None:
        self._dataset = dataset
        self._spec = spec
        self._passages = dataset.passages()
        self._doc_ids = dataset.documents["doc_id"].combine_chunks()
        self._bm25 = BM25Index(self._passages, k1=spec.bm25.k1, b=spec.bm25.b) if spec.bm25 else None
        self._fixed = embed_corpus(encoder, dataset, path=path) if encoder else None

    def mine(
        self,
        query_ids: Sequence[str],
        *,
        corpus: EmbeddedCorpus,
        judged: Mapping[str, Mapping[int, int]],
        depth: int | None = None,
    ) -> pa.Table:
        """All that `mine_blocks` yields as one table, in memory: for a sample or a small set."""
        blocks = self.mine_blocks(query_ids, corpus=corpus, judged=judged, depth=depth)
        return pa.concat_tables(list(blocks) or [CANDIDATES_SCHEMA.empty_table()])

    def mine_blocks(
        self,
        query_ids: Sequence[str],
        *,
        corpus: EmbeddedCorpus,
        judged: Mapping[str, Mapping[int, int]],
        depth: int | None = None,
        scratch: Path | None = None,
        queries_per_block: int = QUERIES_PER_BLOCK,
    ) -> Iterator[pa.Table]:
        """Candidates of `query_ids`, in that order, in tables of `queries_per_block` rows.

        Args:
            query_ids: whose candidates.
            corpus: the documents as the current student embeds them; unused when the job names a fixed encoder.
            judged: query_id -> document row -> relevance; {} for test queries, whose labels must not leak in.
            depth: overrides both sources' top_k and max_candidates (evaluation looks deeper than training).
            scratch: a `.npy` file to hold the queries' embeddings meanwhile, instead of memory.
            queries_per_block: any number changes at most the last bits of scores, a multiple of `QUERY_CHUNK` nothing.
        """
        texts = [self._dataset.query_text(query_id) for query_id in query_ids]
        dense = self._fixed or corpus
        embedded = None
        if self._spec.dense:
            # All at once: an encoder's last bits depend on which texts share its batches.
            embedded = _embedded_anew(dense.encoder, texts, scratch)
        for start in range(0, len(texts), queries_per_block):
            block = slice(start, start + queries_per_block)
            bm25_rows = found = None
            if self._bm25 and self._spec.bm25:
                bm25_rows, _ = self._bm25.search(texts[block], depth or self._spec.bm25.top_k)
            if embedded is not None and self._spec.dense:
                found = dense.search_embedded(np.array(embedded[block]), depth or self._spec.dense.top_k)
                let_go(embedded)
            yield mine(
                query_ids[block],
                judged=judged,
                doc_ids=self._doc_ids,
                passages=self._passages,
                bm25_rows=bm25_rows,
                dense=found,
                max_candidates=depth or self._spec.max_candidates,
            )


def mine_once(path: Path, mine: Callable[[], Iterable[pa.Table]]) -> CandidatesFile:
    """The candidates in `path`; mined and written, block by block, if they are not there yet."""
    return CandidatesFile(path) if path.is_file() else write_candidates(path, mine())


def _embedded(
    encoder: DualEncoder,
    texts: Sequence[str],
    kind: TextKind,
    path: Path | None,
    check: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float32]:
    if path is None:
        return encoder.encode(texts, kind)

    def batches() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        for batch in encoder.encode_batches(texts, kind):
            check()
            yield batch

    return write_embeddings(path, (len(texts), encoder.dimension), batches())


def _embedded_anew(encoder: DualEncoder, texts: Sequence[str], scratch: Path | None) -> npt.NDArray[np.float32]:
    """The queries' embeddings; on disk they have no name, so that nothing stays behind and nothing old is taken."""
    if scratch is not None:
        scratch.unlink(missing_ok=True)
    embedded = _embedded(encoder, texts, "query", scratch)
    if scratch is not None:
        scratch.unlink()
    return embedded
