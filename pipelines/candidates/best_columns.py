"""The best columns of a block of scores, exactly, without looking at most of it twice.

Enters: products of queries and a block of documents, and the worst score that each query already keeps. Leaves: the few
columns that may enter its list. A top-k over 65,536 columns takes as long as half the product that made them. The
maximum of every 64 columns, a tile, costs a fraction of it and rules nearly all of them out: nothing in a tile that
stays below a bound can count. The bound is the worst score kept so far; where there is none yet, the k-th best of the
maxima, for at least k scores reach it.
"""

import torch

__all__ = ["TILE", "best_columns"]

TILE = 64
_TILES_PER_RESULT = 8
"""With fewer tiles the bound is so low that a top-k is cheaper."""


def best_columns(
    scores: torch.Tensor, width: int, worst_kept: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns among which are all that belong to a row's best `width`, ties to the lower column.

    Args:
        scores: float32 [rows, columns], a multiple of `TILE` columns; minus infinity where there is no document.
        width: at least 1.
        worst_kept: [rows, 1]: only columns that beat it are wanted, an equal one has a higher row than what is kept.
            None: nothing is kept.

    Returns:
        columns int64 and their scores, [rows, any], columns ascending in each row or scores descending with ties by
        column; a row's missing entries have a score of minus infinity.
    """
    width = min(width, scores.shape[1])
    tiles = scores.view(len(scores), -1, TILE)
    most = tiles.amax(dim=2)
    if worst_kept is not None:
        line, tile = torch.nonzero(most > worst_kept, as_tuple=True)
    elif most.shape[1] >= _TILES_PER_RESULT * width:
        bound = torch.topk(most, width, dim=1).values[:, -1:]
        line, tile = torch.nonzero(most >= bound, as_tuple=True)
    else:
        return _top(scores, width)
    if len(line) > 4 * width * len(scores):
        return _top(scores, width)  # documents in order of their scores, or mostly ties
    found = tiles[line, tile]
    wanted = found > worst_kept[line] if worst_kept is not None else found >= bound[line]
    entry, inside = torch.nonzero(wanted, as_tuple=True)
    return _padded(line[entry], tile[entry] * TILE + inside, found[entry, inside], num_rows=len(scores))


def _padded(
    line: torch.Tensor, column: torch.Tensor, score: torch.Tensor, *, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries by line as a rectangle."""
    counts = torch.bincount(line, minlength=num_rows)
    place = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[line]
    shape = (num_rows, int(counts.max()) if num_rows else 0)
    columns = torch.zeros(shape, dtype=torch.int64, device=line.device)
    scores = torch.full(shape, -torch.inf, device=line.device)
    columns[line, place], scores[line, place] = column, score
    return columns, scores


def _top(scores: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top `width` columns of each row, in the order (score down, column up)."""
    values, columns = torch.topk(scores, min(width + 1, scores.shape[1]), dim=1)
    # topk picks freely among columns tied at the last place; only there is the slow stable sort needed.
    tied = (values[:, width - 1 :].diff(dim=1) == 0).any(dim=1)
    columns = columns[:, :width]
    if bool(tied.any()):
        columns[tied] = torch.sort(scores[tied], dim=1, descending=True, stable=True).indices[:, :width]
    columns = columns.sort(dim=1).values
    values, order = torch.sort(scores.gather(1, columns), dim=1, descending=True, stable=True)
    return columns.gather(1, order), values
