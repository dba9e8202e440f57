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
from pipelines.errors import DataError
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
        DataError: there is no query, or nothing is found for any of them.
        ModelError: the student, or the encoder that finds dense candidates, cannot be used.
    """
    if not queries:
        raise DataError("dataset: no query is left to train on: every one is judged in another split")
    rng = np.random.default_rng((spec.seed, 3))
    chosen = [queries[i] for i in rng.permutation(len(queries))[:_QUERIES]]
    part = _some_documents(dataset, chosen, rng)
    miner = Miner(part, spec.candidates)
    dense, student = spec.candidates.dense, spec.student
    if dense and dense.encoder:
        student = dense.encoder
    folder = resolve_model(student.model.id, student.model.revision, roots=model_roots)
    encoder = load_student(folder, student, dropout=0.0, device=resolve_device())
    judged = _judged(spec, dataset, chosen, part)
    found = miner.mine(chosen, corpus=embed_corpus(encoder, part), judged=judged)
    items = [
        (query_id, item)
        for query_id, items in zip(found["query_id"].to_pylist(), found["candidates"].to_pylist(), strict=True)
        for item in items
    ]
    if not items:
        raise DataError(f"candidates: nothing was found for any of {len(chosen)} queries")
    alone = [item["bm25_rank"] is None and item["dense_rank"] is not None for _, item in items]
    pairs = tuple((query_id, item["doc_id"]) for query_id, item in items)
    return CandidateSample(len(chosen), pairs, sum(alone) / len(alone))


def _some_documents(dataset: Dataset, queries: Sequence[str], rng: np.random.Generator) -> Dataset:
    """The data set with up to `_DOCUMENTS` of its documents, whatever is judged for `queries` among them."""
    judged = dataset.qrels.filter(pc.is_in(dataset.qrels["query_id"], pa.array(queries, pa.string())))
    kept = dict.fromkeys(dataset.document_row[doc_id] for doc_id in judged["doc_id"].to_pylist())
    kept |= dict.fromkeys(rng.permutation(len(dataset.documents))[:_DOCUMENTS].tolist())
    documents = dataset.documents.take(sorted(list(kept)[:_DOCUMENTS]))
    return Dataset(dataset.name, documents, dataset.queries, dataset.qrels.slice(0, 0))


def _judged(
    spec: DistillationSpec, dataset: Dataset, queries: Sequence[str], part: Dataset
) -> dict[str, dict[int, int]]:
    """What the job's labels say of the sampled queries and documents, in rows of `part`."""
    split = spec.dataset.train_split if spec.training.use_labels else None
    judged = dataset.judged(split) if split else {}
    row = part.document_row
    return {
        query: {row[doc_id]: grade for doc_id, grade in judged[query].items() if doc_id in row}
        for query in queries
        if query in judged
    }
