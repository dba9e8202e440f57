"""What both trainers learn from: real questions with real passages, and teacher logits that are random but fixed.

Enters: the quickstart's data (MedQuAD). Leaves: lists of one judged passage and BM25's best others, as the candidates
that a job mines, as a table of ranked lists, and as the rows with texts that sentence-transformers wants. No teacher
has scored anything: speed does not depend on what the scores are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.candidates.bm25 import BM25Index
from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.table import RankedLists
from pipelines.spec import DatasetSpec
from pipelines.teacher.contract import ScoreContract

__all__ = [
    "CONTRACT",
    "JOB",
    "WIDTH",
    "committed",
    "distinct_texts",
    "quickstart",
    "random_logits",
    "real_lists",
    "rows",
]

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "data"
JOB = "benchmark"
WIDTH = 8
"""Candidates of a list, the positive included."""
MARGIN_SCALE = 10.0
"""Of cosines in MarginMSE, on both sides: at 1 they never reach the teacher's margins, and our spec refuses that."""
CONTRACT = ScoreContract(model_id="random logits", revision=None, weights_hash="0" * 64, max_length=256, dtype="fp32")


def quickstart() -> Dataset:
    """MedQuAD as the quickstart has it; `pool` is what its job treats as unlabelled, though it is judged."""
    return load_dataset(DatasetSpec(path=str(QUICKSTART), train_split="pool", test_split="train"), QUICKSTART)


def real_lists(dataset: Dataset, count: int, *, seed: int = 0) -> pa.Table:
    """Candidates of `count` questions in random order: one positive, then BM25's best that are judged nowhere.

    Raises:
        SystemExit: there are fewer questions than that.
    """
    judged = dataset.judged_rows("pool") | dataset.judged_rows("train")
    order = [sorted(judged)[place] for place in np.random.default_rng(seed).permutation(len(judged))]
    passages = dataset.documents["doc_id"].to_pylist()
    index = BM25Index(dataset.passages())
    kept: list[dict[str, Any]] = []
    for start in range(0, len(order), 128):
        part = order[start : start + 128]
        found, _ = index.search([dataset.query_text(query_id) for query_id in part], 2 * WIDTH)
        for query_id, best in zip(part, found.tolist(), strict=True):
            known = [row for row, grade in judged[query_id].items() if grade > 0]
            others = [row for row in best if row >= 0 and row not in known][: WIDTH - 1]
            if known and len(others) == WIDTH - 1:
                kept.append({"query_id": query_id, "candidates": _candidates(passages, known[0], others)})
        if len(kept) >= count:
            return pa.Table.from_pylist(kept[:count], schema=CANDIDATES_SCHEMA)
    raise SystemExit(f"{count} lists are wanted, the quickstart's data makes {len(kept)}")


def _candidates(passages: list[str], positive: int, others: list[int]) -> list[dict[str, Any]]:
    unknown = {"student_score": None, "dense_rank": None}
    first = {"doc_id": passages[positive], "bm25_rank": None, "relevance": 1, **unknown}
    more = enumerate(others)
    return [first, *({"doc_id": passages[r], "bm25_rank": n, "relevance": None, **unknown} for n, r in more)]


def random_logits(count: int, *, seed: int = 0) -> np.ndarray:
    """Float32 [count, WIDTH], spread as a teacher's are; the positive's are no higher than others."""
    return np.random.default_rng((seed, 1)).normal(0, 2, (count, WIDTH)).astype(np.float32)


def committed(folder: Path, candidates: pa.Table, logits: np.ndarray, *, per_chunk: int) -> RankedLists:
    """Round 0 of `JOB` in a new table."""
    lists = RankedLists(folder, CONTRACT)
    for chunk_id, start in enumerate(range(0, len(candidates), per_chunk)):
        part = slice(start, start + per_chunk)
        place = {"job_id": JOB, "round_number": 0, "chunk_id": chunk_id}
        ranked = rank_candidates(candidates.slice(start, per_chunk), logits[part].ravel(), weights_version=0, **place)
        lists.commit_chunk(ranked, **place)
    return lists


def rows(dataset: Dataset, candidates: pa.Table, logits: np.ndarray) -> dict[str, list[Any]]:
    """The same lists as columns query, positive, negative_1 to negative_7, label (the logits, the positive's first)."""
    names = ["positive", *(f"negative_{number}" for number in range(1, WIDTH))]
    lists = candidates["candidates"].to_pylist()
    columns: dict[str, list[Any]] = {"query": [dataset.query_text(q) for q in candidates["query_id"].to_pylist()]}
    for place, name in enumerate(names):
        columns[name] = [dataset.passage(items[place]["doc_id"]) for items in lists]
    return columns | {"label": logits.tolist()}


def distinct_texts(columns: dict[str, list[Any]], *, per_step: int) -> float:
    """Distinct texts of a step, on average: queries and documents apart, as their prompts may differ."""
    documents = [name for name in columns if name not in {"query", "label"}]
    counts = []
    for start in range(0, len(columns["query"]), per_step):
        part = slice(start, start + per_step)
        counts.append(
            len(set(columns["query"][part])) + len({text for name in documents for text in columns[name][part]})
        )
    return float(np.mean(counts))
