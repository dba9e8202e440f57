"""Dense candidates: exact inner-product search with the student's embeddings, in bounded memory.

Enters: embeddings of queries and documents. Leaves: document rows and scores per query. Exact, because an
approximate index would hide the very negatives that the student confuses. Memory is one block of scores,
query_chunk × document_chunk, plus the best so far.
"""

import numpy as np
import torch

from pipelines.errors import ModelError

__all__ = ["top_k_inner_product"]


def top_k_inner_product(
    query_embeddings: np.ndarray,
    document_embeddings: np.ndarray,
    top_k: int,
    *,
    query_chunk: int = 256,
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
    queries, documents = _tensor(query_embeddings), _tensor(document_embeddings)
    width = min(top_k, len(documents))
    rows = np.empty((len(queries), width), dtype=np.int64)
    scores = np.empty((len(queries), width), dtype=np.float32)
    for start in range(0, len(queries), query_chunk):
        block = queries[start : start + query_chunk].to(device)
        best = _search_block(block, documents, width, document_chunk)
        rows[start : start + query_chunk] = best[0].cpu().numpy()
        scores[start : start + query_chunk] = best[1].cpu().numpy()
    return rows, scores


@torch.inference_mode()
def _search_block(
    queries: torch.Tensor, documents: torch.Tensor, width: int, document_chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    scores = torch.empty((len(queries), 0), dtype=torch.float32, device=queries.device)
    for start in range(0, len(documents), document_chunk):
        block = queries @ documents[start : start + document_chunk].to(queries.device).T
        found, values = _top(block, min(width, block.shape[1]))
        # Kept rows are lower than new ones and stand before them, so a stable sort settles ties by row.
        rows, scores = torch.cat([rows, found + start], dim=1), torch.cat([scores, values], dim=1)
        scores, order = torch.sort(scores, dim=1, descending=True, stable=True)
        rows, scores = rows.gather(1, order)[:, :width], scores[:, :width]
    return rows, scores


def _top(block: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top `width` columns of each row of [queries, documents], in the order (score down, column up)."""
    values, columns = torch.topk(block, width, dim=1)
    # topk picks freely among columns tied at the last place; only there is the slow stable sort needed.
    tied = (block >= values[:, -1:]).sum(dim=1) > width
    if bool(tied.any()):
        columns[tied] = torch.sort(block[tied], dim=1, descending=True, stable=True).indices[:, :width]
    columns = columns.sort(dim=1).values
    values, order = torch.sort(block.gather(1, columns), dim=1, descending=True, stable=True)
    return columns.gather(1, order), values


def _tensor(embeddings: np.ndarray) -> torch.Tensor:
    # A read-only array (memory map, Arrow, Ray object) would make torch warn about writes.
    return torch.from_numpy(embeddings if embeddings.flags.writeable else embeddings.copy())


def _check(queries: np.ndarray, documents: np.ndarray) -> None:
    for name, array in (("query", queries), ("document", documents)):
        if array.dtype != np.float32 or array.ndim != 2:
            raise ValueError(f"{name} embeddings must be float32 [rows, dim], got {array.dtype} {array.shape}")
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise ModelError(
                f"{len(bad)} of {len(array)} {name} embeddings hold NaN or infinity, first in row {bad[0]}"
            )
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(f"dimensions differ: queries {queries.shape[1]}, documents {documents.shape[1]}")
    if not len(documents):
        raise ValueError("there is no document to search")
