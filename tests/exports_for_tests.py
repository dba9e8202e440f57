"""A small real table of ranked lists with labels, ties and gaps, and its exports; for the tests of `lists`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.exports.choice import ExportOptions
from pipelines.ranked.exports.export import ExportReport, Selection, export_lists
from pipelines.ranked.exports.registry import FORMATS
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.table import RankedLists, RoundOfLists, ranked_lists_location
from pipelines.spec_sections.filters import FilterSpec
from pipelines.teacher.contract import ScoreContract

CONTRACT = ScoreContract(model_id="a/teacher", revision=None, weights_hash="2" * 64, max_length=48, dtype="fp32")
RULE = PositiveRule(use_labels=True, teacher_top=True, min_confidence=0.9)
JOB = RoundOfLists("job", 0, 5)
LISTS: dict[str, list[tuple[str, float, int | None]]] = {
    # (document, logit, relevance), in mined order; 0.1 and 1/3 have no exact binary form.
    "train0": [("d0", -0.1, 2), ("d1", 3.3, 1), ("d2", 1 / 3, None), ("d3", 7.25, 0), ("d4", -8.1, None)],
    "train1": [("d5", 0.1, 1), ("d6", -1.7, None)],
    "pool12": [("d7", 0.2, None), ("d8", 0.1, None), ("d9", 0.1, None)],
    "pool13": [("d10", 9.0, None), ("d11", 1.0, None), ("d12", -2.5, None), ("d13", -2.5, None)],
    "pool14": [],
}
"""Two positives, one not to the teacher's liking; a short list; one nobody is sure of; one the teacher is; nothing."""


def table_below(root: Path, dataset: Dataset, *, rows_per_chunk: int = 2, job_id: str = "job") -> RankedLists:
    """`LISTS` in chunks, committed out of order."""
    place = ranked_lists_location(
        root, dataset_fingerprint=dataset.fingerprint, contract_fingerprint=CONTRACT.fingerprint
    )
    lists = RankedLists(place, CONTRACT, dataset_fingerprint=dataset.fingerprint)
    queries = list(LISTS)
    chunks = [queries[start : start + rows_per_chunk] for start in range(0, len(queries), rows_per_chunk)]
    for chunk_id, chunk in reversed(list(enumerate(chunks))):
        lists.commit_chunk(ranked(chunk, chunk_id, job_id), job_id=job_id, round_number=0, chunk_id=chunk_id)
    return lists


def ranked(queries: list[str], chunk_id: int = 0, job_id: str = "job") -> pa.Table:
    """Some of `LISTS` as a chunk."""
    lists = [
        [
            {"doc_id": doc, "student_score": None, "bm25_rank": rank, "dense_rank": None, "relevance": relevance}
            for rank, (doc, _, relevance) in enumerate(LISTS[query])
        ]
        for query in queries
    ]
    struct = pa.struct(
        [
            ("doc_id", pa.string()),
            ("student_score", pa.float32()),
            ("bm25_rank", pa.int32()),
            ("dense_rank", pa.int32()),
            ("relevance", pa.int8()),
        ]
    )
    table = pa.table({"query_id": queries, "candidates": pa.array(lists, type=pa.list_(struct))})
    logits = np.array([logit for query in queries for _, logit, _ in LISTS[query]], dtype=np.float32)
    return rank_candidates(table, logits, job_id=job_id, round_number=0, chunk_id=chunk_id, weights_version=0)


def logit(query_id: str, doc_id: str) -> float:
    """What is stored for a pair: the float32, as a Python number."""
    return next(float(np.float32(value)) for doc, value, _ in LISTS[query_id] if doc == doc_id)


@dataclass
class Exported:
    """An export that a test made."""

    folder: Path
    report: ExportReport

    def data(self, name: str) -> Path:
        return self.folder / "data" / name


@dataclass
class Exporter:
    """Exports one table below a folder, each time to a new name."""

    lists: RankedLists
    dataset: Any
    folder: Path
    made: list[Path] = field(default_factory=list)

    def __call__(
        self,
        format_name: str,
        *,
        negatives: int | None = None,
        rule: PositiveRule = RULE,
        filters: FilterSpec | None = None,
        to: Path | None = None,
        overwrite: bool = False,
    ) -> Exported:
        destination = to or self.folder / f"export{len(self.made)}"
        self.made.append(destination)
        selection = Selection(rule=rule, filters=filters, options=ExportOptions(num_negatives=negatives))
        report = export_lists(
            self.lists,
            JOB,
            destination,
            format_=FORMATS[format_name],
            texts=self.dataset,
            selection=selection,
            overwrite=overwrite,
        )
        return Exported(destination, report)
