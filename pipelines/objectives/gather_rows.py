"""Rows of all workers, with gradient to the worker each came from: the collectives under `gather`.

Enters: what one worker holds, as many rows as it has. Leaves: everybody's rows, worker 0's first. Backward is the
transpose: a row's owner receives the sum of what all workers say about it. (A gather without gradient lets a document
learn from its own worker's queries only; it trains, and worse.)
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.errors import ObjectiveError

__all__ = ["gather_padded", "gather_rows", "gather_sizes", "row_counts", "several_workers"]


def several_workers(group: dist.ProcessGroup | None) -> bool:
    """Is there a process group with anybody else in it?"""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gather_rows(rows: Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """All workers' [rows, columns], worker 0's first, with gradient; as it came without other workers.

    Raises:
        ObjectiveError: workers have rows of different width.
    """
    if not several_workers(group):
        return rows
    return gather_padded(rows, row_counts(rows, group), group)


def row_counts(rows: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many [rows, columns] each worker has; their width must be the same."""
    counts, widths = zip(*gather_sizes(rows.shape, rows.device, group), strict=True)
    if len(set(widths)) > 1:
        raise ObjectiveError(f"gather: workers' embeddings have different dimensions, {list(widths)}")
    return list(counts)


def gather_sizes(sizes: Sequence[int], device: torch.device, group: dist.ProcessGroup | None) -> list[list[int]]:
    """Every worker's numbers, as many from each, worker 0's first."""
    mine = torch.tensor([list(sizes)], device=device)
    everyone = mine.new_empty((dist.get_world_size(group), len(sizes)))
    dist.all_gather_single(everyone, mine, group=group)
    return cast("list[list[int]]", everyone.tolist())


def gather_padded(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Collectives want equal shapes: everybody sends as many rows as the largest, and what was filled up is cut off.

    Args:
        rows: [own rows, ...], the rest of the shape as everywhere; flags travel as bytes.
        counts: how many rows each worker has.
        group: whose workers.
    """
    if rows.dtype == torch.bool:
        return gather_padded(rows.byte(), counts, group).bool()
    longest = max(counts)
    filled = torch.cat([rows, rows.new_zeros((longest - len(rows), *rows.shape[1:]))])
    gathered = cast("Tensor", _GatherEqual.apply(filled, group))  # type: ignore[no-untyped-call]
    real = [torch.arange(count) + worker * longest for worker, count in enumerate(counts)]
    return gathered[torch.cat(real).to(gathered.device)]


class _GatherEqual(torch.autograd.Function):
    """all_gather; backward is its transpose: each worker receives the sum of what all say about its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.shape = group, rows.shape
        everyone = rows.new_empty((dist.get_world_size(group) * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_single(everyone, rows.contiguous(), group=group)
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        mine = gradient.new_empty(ctx.shape)
        dist.reduce_scatter_single(mine, gradient.contiguous(), group=ctx.group)
        return mine, None
