"""Points between embeddings: which negatives are mixed, how much of each, and where the mixtures lie.

Enters: queries, their hardest negatives, random choices. Leaves: synthetic negatives, for MoCHi. The random choices are
a value of their own, so that a loss is a pure function of them and a golden number can fix them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Mixing", "draw_mixing", "hardest_negatives", "mixtures_of_negatives", "mixtures_with_queries"]


@dataclass(frozen=True)
class Mixing:
    """Random choices of one step; positions point into each query's hardest negatives, hardest first.

    Attributes:
        first: [queries, type 1 mixtures] int64.
        second: [queries, type 1 mixtures] int64.
        first_share: [queries, type 1 mixtures] in [0, 1], the a of the first.
        partner: [queries, type 2 mixtures] int64.
        query_share: [queries, type 2 mixtures] in [0, 1], the b of the query, before its cap.
    """

    first: Tensor
    second: Tensor
    first_share: Tensor
    partner: Tensor
    query_share: Tensor


def hardest_negatives(scores: Tensor, safe: Tensor, count: int) -> Tensor:
    """Columns of each row's best `safe` entries, best first; columns that are not safe follow where there are too few.

    Args:
        scores: [queries, documents].
        safe: [queries, documents] bool.
        count: how many, at most all.

    Returns:
        int64 [queries, min(count, documents)].
    """
    return scores.masked_fill(~safe, -torch.inf).topk(min(count, scores.shape[1]), dim=1).indices


def draw_mixing(
    available: Tensor,
    negative_mixtures: int,
    query_mixtures: int,
    max_query_share: float,
    generator: torch.Generator | None = None,
) -> Mixing:
    """Random positions and shares; two different positions per mixture of negatives wherever there are two.

    Args:
        available: [queries] int64, how many hardest negatives each query has.
        negative_mixtures: mixtures of two negatives per query.
        query_mixtures: mixtures of the query and a negative per query.
        max_query_share: upper end of the query's share.
        generator: a CPU generator; None = torch's own. The draws do not depend on the device or dtype of the loss.
    """
    sizes = [negative_mixtures] * 3 + [query_mixtures] * 2
    uniform = torch.rand(len(available), sum(sizes), generator=generator, dtype=torch.float32, device="cpu")
    first, step, first_share, partner, query_share = torch.split(uniform.to(available.device), sizes, dim=1)
    count = available.clamp(min=1).unsqueeze(1)
    first_position = _position(first, count)
    return Mixing(
        first=first_position,
        second=(first_position + 1 + _position(step, (count - 1).clamp(min=1))) % count,
        first_share=first_share,
        partner=_position(partner, count),
        query_share=query_share * max_query_share,
    )


def mixtures_of_negatives(negatives: Tensor, mixing: Mixing) -> Tensor:
    """Points between the directions of two negatives, of interpolated length.

    Args:
        negatives: [queries, hardest, dimensions].
        mixing: which of them, and how much of the first.

    Returns:
        [queries, type 1 mixtures, dimensions].
    """
    lengths = torch.linalg.vector_norm(negatives, dim=2)
    directions = functional.normalize(negatives, dim=2)
    share = mixing.first_share.to(negatives.dtype)
    length = share * lengths.gather(1, mixing.first) + (1 - share) * lengths.gather(1, mixing.second)
    mixed = torch.lerp(_rows(directions, mixing.second), _rows(directions, mixing.first), share.unsqueeze(2))
    points: Tensor = functional.normalize(mixed, dim=2) * length.unsqueeze(2)
    return points


def mixtures_with_queries(
    queries: Tensor, positive_scores: Tensor, negatives: Tensor, mixing: Mixing
) -> tuple[Tensor, Tensor]:
    """Points between the directions of a query and a negative, as long as the negative, no closer than the positive.

    Args:
        queries: [queries, dimensions].
        positive_scores: [queries, 1], dot product of each query with its positive.
        negatives: [queries, hardest, dimensions].
        mixing: which of them, and how much of the query before the cap.

    Returns:
        The points [queries, type 2 mixtures, dimensions], and bool [queries, type 2 mixtures], False where the negative
        itself is closer to the query than the positive: no share of the query makes that a harder negative.
    """
    partners = _rows(negatives, mixing.partner)
    lengths = torch.linalg.vector_norm(partners, dim=2)
    directions = functional.normalize(partners, dim=2)
    towards = functional.normalize(queries, dim=1).unsqueeze(1)
    # In the plane of query and negative: the mixture may turn from the negative's angle to the positive's.
    product = torch.linalg.vector_norm(queries, dim=1, keepdim=True) * lengths
    limit = (positive_scores / product.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(-1, 1).arccos()
    turn = (directions * towards).sum(dim=2).clamp(-1, 1).arccos() - limit
    cap = turn.sin() / (turn.sin() + limit.sin())
    share = torch.minimum(mixing.query_share.to(cap.dtype), cap.nan_to_num(nan=1.0)).clamp(min=0).unsqueeze(2)
    mixed = functional.normalize(torch.lerp(directions, towards.expand_as(directions), share), dim=2)
    return mixed * lengths.unsqueeze(2), turn > 0


def _rows(vectors: Tensor, positions: Tensor) -> Tensor:
    return vectors.gather(1, positions.unsqueeze(2).expand(-1, -1, vectors.shape[2]))


def _position(uniform: Tensor, count: Tensor) -> Tensor:
    return torch.minimum((uniform * count).long(), count - 1)
