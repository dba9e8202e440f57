"""Dense candidates: exact inner-product search with the student's embeddings, in bounded memory.

Enters: embeddings of queries and documents, in memory or a read-only memory map. Leaves: document rows and scores per
query. Exact, because an approximate index would hide the very negatives that the student confuses. Memory is one block
of documents, one block of scores (query_chunk × document_chunk), and the best so far. A memory map is read block by
block and let go, so a corpus larger than memory needs no more of it than a small one.
"""

from collections.abc import Iterator

import numpy as np
import torch

from pipelines.candidates.best_columns import TILE, best_columns
from pipelines.candidates.embeddings import let_go
from pipelines.errors import ModelError

__all__ = ["QUERY_CHUNK", "top_k_inner_product"]

QUERY_CHUNK = 256
"""Queries of one product. Searching in blocks of a multiple of it gives bit for bit what one search gives."""
_READ_ROWS = 4096
"""Rows of a memory map that are in memory twice while they are read."""


def top_k_inner_product(
    query_embeddings: np.ndarray,
    document_embeddings: np.ndarray,
    top_k: int,
    *,
    query_chunk: int = QUERY_CHUNK,
    document_chunk: int = 65_536,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Best documents of each query by inner product, best first; equal scores go to the lower row.

    Args:
        query_embeddings: float32 [queries, dim].
        document_embeddings: float32 [documents, dim], at least one document.
        top_k: at least 1; more than there are documents means all of them.
        query_chunk: queries per block.
        document_chunk: documents per block.
        device: where the products are computed, in float32.

    Returns:
        rows int64 [queries, k] and scores float32 [queries, k] with k = min(top_k, documents).

    Raises:
        ModelError: an embedding holds NaN or infinity (how many rows, and the first, are named).
        ValueError: shapes do not fit, or a size is below 1.
    """
    _check(query_embeddings, document_embeddings)
    if min(top_k, query_chunk, document_chunk) < 1:
        raise ValueError(f"sizes must be at least 1, got {top_k=}, {query_chunk=}, {document_chunk=}")
    _require_finite("query", query_embeddings, query_embeddings)
    width = min(top_k, len(document_embeddings))
    rows = np.empty((len(query_embeddings), width), dtype=np.int64)
    scores = np.full((len(query_embeddings), width), -np.inf, dtype=np.float32)
    queries = torch.from_numpy(_writeable(query_embeddings)).to(device)
    most = min(query_chunk, len(queries)) * _tiled(min(document_chunk, len(document_embeddings)))
    space, found = torch.empty(most, dtype=torch.float32, device=device), 0
    for start, block in _blocks(document_embeddings, document_chunk):
        documents = torch.from_numpy(block).to(device)
        now = min(width, found + len(documents))
        for first in range(0, len(queries), query_chunk):
            part = slice(first, first + query_chunk)
            best = torch.from_numpy(rows[part, :found]), torch.from_numpy(scores[part, :found])
            better = _merge(_products(queries[part], documents, space), start, best, now)
            rows[part, :now], scores[part, :now] = (values.cpu().numpy() for values in better)
        found = now
    return rows, scores


@torch.inference_mode()
def _merge(
    scores: torch.Tensor, start: int, best: tuple[torch.Tensor, torch.Tensor], width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `width` of those kept so far and a block of scores, whose first column is document `start`."""
    kept, values = (tensor.to(scores.device) for tensor in best)
    columns, fresh = best_columns(scores, width, values[:, -1:] if kept.shape[1] == width else None)
    # Kept rows are lower than new ones and stand before them, so a stable sort settles ties by row.
    rows, fresh = torch.cat([kept, columns + start], dim=1), torch.cat([values, fresh], dim=1)
    fresh, order = torch.sort(fresh, dim=1, descending=True, stable=True)
    return rows.gather(1, order)[:, :width], fresh[:, :width]


@torch.inference_mode()
def _products(queries: torch.Tensor, documents: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """Inner products in `space`, [queries, a multiple of `TILE`]; minus infinity beyond the documents."""
    # New memory for every block would cost as much as half the product: the system clears each page of it.
    columns = _tiled(len(documents))
    scores = space[: len(queries) * columns].view(len(queries), columns)
    torch.mm(queries, documents.T, out=scores[:, : len(documents)])
    scores[:, len(documents) :] = -torch.inf
    return scores


def _tiled(columns: int) -> int:
    return -(-columns // TILE) * TILE


def _blocks(documents: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of each block, checked; a block is good until the next one is asked for."""
    mapped = not documents.flags.writeable
    space = np.empty((min(size, len(documents)), documents.shape[1]), dtype=np.float32) if mapped else documents
    for start in range(0, len(documents), size):
        end = min(len(documents), start + size)
        block = documents[start:end]
        if mapped:
            block = space[: end - start]
            for first in range(start, end, _READ_ROWS):
                block[first - start : first - start + _READ_ROWS] = documents[first : min(end, first + _READ_ROWS)]
                let_go(documents)
        _require_finite("document", block, documents)
        yield start, block


def _writeable(embeddings: np.ndarray) -> np.ndarray:
    # A read-only array (memory map, Arrow, Ray object) would make torch warn about writes.
    return embeddings if embeddings.flags.writeable else np.array(embeddings)


def _check(queries: np.ndarray, documents: np.ndarray) -> None:
    for name, array in (("query", queries), ("document", documents)):
        if array.dtype != np.float32 or array.ndim != 2:
            raise ValueError(f"{name} embeddings must be float32 [rows, dim], got {array.dtype} {array.shape}")
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(f"dimensions differ: queries {queries.shape[1]}, documents {documents.shape[1]}")
    if not len(documents):
        raise ValueError("there is no document to search")


def _require_finite(name: str, block: np.ndarray, whole: np.ndarray) -> None:
    # A sum over a row that is finite has finite terms; only where one is not, is every number looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block @ np.ones(block.shape[1], dtype=np.float32)).all():
            return
    size = 65_536
    blocks = (np.isfinite(whole[i : i + size]).all(axis=1) for i in range(0, len(whole), size))
    bad = np.flatnonzero(~np.concatenate(list(blocks)))
    if len(bad):
        raise ModelError(f"{len(bad)} of {len(whole)} {name} embeddings hold NaN or infinity, first in row {bad[0]}")
