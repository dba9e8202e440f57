"""An encoder whose products are exact, a slow union to hold the fast one to, and tables of candidates."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.candidates.schema import CANDIDATES_SCHEMA


class WholeNumbers:
    """Embeds texts as small whole numbers: no order of summation changes a product, and many scores are equal."""

    device = torch.device("cpu")
    dimension = 6

    def encode(self, texts: Sequence[str], kind: str) -> np.ndarray:
        drawn = [np.random.default_rng(zlib.crc32(f"{kind} {text}".encode())).integers(-2, 3, 6) for text in texts]
        return np.array(drawn, dtype=np.float32).reshape(-1, 6)

    def encode_batches(self, texts: Sequence[str], kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Backwards and in small batches: who writes them must not count on order."""
        for end in range(len(texts), 0, -5):
            rows = np.arange(max(0, end - 5), end)[::-1]
            yield rows, self.encode([texts[row] for row in rows], kind)


def union_by_the_book(
    query_ids: Sequence[str],
    *,
    judged: Mapping[str, Mapping[int, int]],
    doc_ids: Sequence[str],
    passages: Sequence[str],
    bm25_rows: np.ndarray | None,
    dense: tuple[np.ndarray, np.ndarray] | None,
    max_candidates: int,
) -> pa.Table:
    """What `union.mine` promises, one query and one document at a time."""
    table: list[dict[str, Any]] = []
    for position, query_id in enumerate(query_ids):
        ranks: dict[int, dict[str, Any]] = {}
        for rank, row in enumerate(bm25_rows[position].tolist() if bm25_rows is not None else []):
            if row >= 0:
                ranks.setdefault(row, {})["bm25_rank"] = rank
        for rank, row in enumerate(dense[0][position].tolist() if dense else []):
            if row >= 0:
                ranks.setdefault(row, {}).update(dense_rank=rank, student_score=float(dense[1][position, rank]))
        labels = judged.get(query_id, {})
        positives = sorted((row for row in labels if labels[row] > 0), key=lambda row: (-labels[row], row))
        texts = {passages[row] for row in positives}
        fused = {
            row: sum(1 / (60 + found[source]) for source in ("bm25_rank", "dense_rank") if source in found)
            for row, found in ranks.items()
        }
        mined = [row for row in ranks if row not in positives and passages[row] not in texts]
        mined.sort(key=lambda row: (-fused[row], row))
        table.append(
            {
                "query_id": query_id,
                "candidates": [
                    {
                        "doc_id": doc_ids[row],
                        "student_score": ranks.get(row, {}).get("student_score"),
                        "bm25_rank": ranks.get(row, {}).get("bm25_rank"),
                        "dense_rank": ranks.get(row, {}).get("dense_rank"),
                        "relevance": labels.get(row),
                    }
                    for row in positives + mined[: max(0, max_candidates - len(positives))]
                ],
            }
        )
    return pa.Table.from_pylist(table, schema=CANDIDATES_SCHEMA)


def candidates_table(lengths: Sequence[int]) -> pa.Table:
    """A query for each length, with so many candidates."""
    item = {"student_score": 0.5, "bm25_rank": None, "dense_rank": 1, "relevance": None}
    rows = [
        {"query_id": f"q{place}", "candidates": [item | {"doc_id": f"d{place}-{i}"} for i in range(length)]}
        for place, length in enumerate(lengths)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)
