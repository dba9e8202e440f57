"""A taste of mining: the candidates of some queries among some documents, for seconds instead of hours.

Enters: a spec, its data, the training queries. Leaves: a `CandidateSample`. It is mined as the job would be, by the
same sources, so overlaps between them, positives, doubles and the length of what they like to find are all in it; in
a corpus of no more than `_DOCUMENTS` only the queries are a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.candidates.miner import Miner, embed_corpus
from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device
from pipelines.model_files import resolve_model
from pipelines.spec import DistillationSpec
from pipelines.student.model import load_student

__all__ = ["CandidateSample", "sample_candidates"]

_QUERIES = 256
_DOCUMENTS = 2000


@dataclass(frozen=True)
class CandidateSample:
    """What was found for the sampled queries."""

    num_queries: int
    pairs: tuple[tuple[str, str], ...]
    """(query_id, doc_id)."""
    only_dense: float
    """Share of the pairs that the dense source alone found."""

    @property
    def pairs_per_query(self) -> float:
        """Mean length of a list."""
        return len(self.pairs) / self.num_queries


def sample_candidates(
    spec: DistillationSpec, dataset: Dataset, queries: Sequence[str], *, model_roots: Sequence[Path]
) -> CandidateSample:
    """Mine for up to `_QUERIES` of `queries`, drawn from the spec's seed.

    Raises:
        ModelError: the student, or the encoder that finds dense candidates, cannot be used.
    """
    rng = np.random.default_rng((spec.seed, 3))
    chosen = [queries[i] for i in rng.permutation(len(queries))[:_QUERIES]]
    part = _some_documents(dataset, chosen, rng)
    split = spec.dataset.train_split if spec.training.use_labels else None
    miner = Miner(part, spec.candidates)
    dense, student = spec.candidates.dense, spec.student
    if dense and dense.encoder:
        student = dense.encoder
    folder = resolve_model(student.model.id, student.model.revision, roots=model_roots)
    encoder = load_student(folder, student, dropout=0.0, device=resolve_device())
    found = miner.mine(chosen, corpus=embed_corpus(encoder, part), judged=part.judged_rows(split) if split else {})
    items = [
        (query_id, item)
        for query_id, items in zip(found["query_id"].to_pylist(), found["candidates"].to_pylist(), strict=True)
        for item in items
    ]
    alone = [item["bm25_rank"] is None and item["dense_rank"] is not None for _, item in items]
    pairs = tuple((query_id, item["doc_id"]) for query_id, item in items)
    return CandidateSample(len(chosen), pairs, sum(alone) / max(1, len(alone)))


def _some_documents(dataset: Dataset, queries: Sequence[str], rng: np.random.Generator) -> Dataset:
    """The data set with up to `_DOCUMENTS` of its documents, whatever is judged for `queries` among them."""
    judged = dataset.qrels.filter(pc.is_in(dataset.qrels["query_id"], pa.array(queries)))
    kept = dict.fromkeys(dataset.document_row[doc_id] for doc_id in judged["doc_id"].to_pylist())
    kept |= dict.fromkeys(rng.permutation(len(dataset.documents))[:_DOCUMENTS].tolist())
    documents = dataset.documents.take(sorted(list(kept)[:_DOCUMENTS]))
    qrels = dataset.qrels.filter(pc.is_in(dataset.qrels["doc_id"], documents["doc_id"].combine_chunks()))
    return Dataset(dataset.name, documents, dataset.queries, qrels)
