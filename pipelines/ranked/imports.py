"""Scores made elsewhere become ranked lists, under a contract of their own that no teacher of ours can share.

Enters: a file of scores (see `score_files`), the data set it is about. Leaves: committed lists of job `import-...`,
round 0. The file is read twice, once to check all of it, once to commit, so nothing comes out of a file that is
refused. Contract and job are named by the file's content: importing it again finds everything committed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.corpus.dataset import Dataset
from pipelines.errors import DataError
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.score_files import ScoredQuery, scored_queries
from pipelines.ranked.table import RankedLists, ranked_lists_location
from pipelines.teacher.contract import ScoreContract

__all__ = ["ImportReport", "import_scores", "imported_contract"]

LISTS_PER_CHUNK = 1024
_IMPORTED = "imported"
_CANDIDATES = pa.list_(
    pa.struct(
        [
            ("doc_id", pa.string()),
            ("student_score", pa.float32()),
            ("bm25_rank", pa.int32()),
            ("dense_rank", pa.int32()),
            ("relevance", pa.int8()),
        ]
    )
)


@dataclass(frozen=True)
class ImportReport:
    """What an import found and did."""

    lists: RankedLists
    job_id: str
    num_lists: int
    """In the file."""
    num_pairs: int
    num_committed: int
    """Lists committed now; those that were there before are not committed again."""


def import_scores(
    path: Path, dataset: Dataset, root: Path | str, *, name: str, split: str | None = None
) -> ImportReport:
    """Commit the scores of a file below `root`.

    Args:
        path: a TREC run, or rows of query_id, doc_id, score; the lines of a query stand together.
        dataset: whose ids the file uses.
        root: where ranked lists are kept.
        name: of what made the scores; kept in the contract's `model_id`.
        split: take relevance from this split's judgements; None leaves every pair unjudged.

    Raises:
        DataError: the file is refused (see `scored_queries`), the name is empty, or the split was not loaded.
        RankedListsError: the table cannot be written.
    """
    if not name.strip():
        raise DataError("imported scores need a name: who made them")
    judged = dataset.judged(split) if split is not None else {}
    num_lists = num_pairs = 0
    for query in scored_queries(path, dataset):
        num_lists, num_pairs = num_lists + 1, num_pairs + len(query.doc_ids)
    contract = imported_contract(path, name=name)
    job_id = _job_id(contract, split)
    place = ranked_lists_location(
        root, dataset_fingerprint=dataset.fingerprint, contract_fingerprint=contract.fingerprint
    )
    lists = RankedLists(place, contract, dataset_fingerprint=dataset.fingerprint)
    committed = 0
    for chunk_id, queries in enumerate(_chunks(scored_queries(path, dataset))):
        rows = rank_candidates(
            _candidates(queries, judged),
            np.array([score for query in queries for score in query.scores], dtype=np.float32),
            job_id=job_id,
            round_number=0,
            chunk_id=chunk_id,
            weights_version=0,
        )
        if lists.commit_chunk(rows, job_id=job_id, round_number=0, chunk_id=chunk_id):
            committed += len(queries)
    return ImportReport(lists, job_id, num_lists, num_pairs, committed)


def imported_contract(path: Path, *, name: str) -> ScoreContract:
    """The contract of a file of scores: equal files have equal fingerprints, whatever they are called.

    Nothing is known of how the scores were made, and the fields say so; `max_length` 0 stands for no known length.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ScoreContract(
        model_id=f"{_IMPORTED}:{name}",
        revision=None,
        weights_hash=digest,
        max_length=0,
        dtype=_IMPORTED,
        template=_IMPORTED,
        truncation=_IMPORTED,
        head=_IMPORTED,
        backend=_IMPORTED,
    )


def _job_id(contract: ScoreContract, split: str | None) -> str:
    # The split is part of it: with other judgements the lists are others, and a chunk commits only once.
    return f"import-{hashlib.sha256(f'{contract.weights_hash} {split} {LISTS_PER_CHUNK}'.encode()).hexdigest()[:12]}"


def _chunks(queries: Iterator[ScoredQuery]) -> Iterator[list[ScoredQuery]]:
    while chunk := list(islice(queries, LISTS_PER_CHUNK)):
        yield chunk


def _candidates(queries: list[ScoredQuery], judged: dict[str, dict[str, int]]) -> pa.Table:
    def candidate(query_id: str, doc_id: str) -> dict[str, Any]:
        return {"doc_id": doc_id, "relevance": judged.get(query_id, {}).get(doc_id)}

    lists = [[candidate(query.query_id, doc_id) for doc_id in query.doc_ids] for query in queries]
    return pa.table(
        {
            "query_id": pa.array([query.query_id for query in queries], type=pa.string()),
            "candidates": pa.array(lists, type=_CANDIDATES),
        }
    )
