"""Attention over pairs laid end to end, without padding: how transformers' models are told where each pair ends.

Enters: queries, keys and values of all tokens of a batch in one row, and the boundaries of its sequences. Leaves:
attention within each sequence. On CUDA this is `torch.nn.attention.varlen`; elsewhere each sequence is attended to by
itself, which is slow, and is how the packed path is tested on a machine without a GPU.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["IMPLEMENTATION", "Sequences", "register", "varlen_attention"]

IMPLEMENTATION = "dualdistill_varlen"
"""The name under which transformers' attention interface knows it."""


@dataclass(frozen=True)
class Sequences:
    """Where each sequence begins in a row of tokens."""

    bounds: Tensor
    """[n + 1] int32: sequence i is `bounds[i] : bounds[i + 1]`."""
    longest: int

    @classmethod
    def singles(cls, like: "Sequences") -> "Sequences":
        """As many sequences as `like` has, of one token each."""
        return cls(torch.arange(len(like.bounds), dtype=torch.int32, device=like.bounds.device), 1)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Sequences,
    keys: Sequences,
    *,
    scale: float | None,
    window: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Softmax attention within each sequence.

    Args:
        query: [tokens, heads, head size].
        key: [tokens, key heads, head size]; fewer heads than `query` are shared by groups of its heads.
        value: as `key`.
        queries: the sequences of `query`.
        keys: those of `key` and `value`, as many.
        scale: of the dot products; None is 1 / sqrt(head size).
        window: how many tokens to the left and right a token sees, -1 for all; (-1, 0) is causal.

    Returns:
        [tokens of `query`, heads, head size].
    """
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        seen = varlen_attn(
            query,
            key,
            value,
            queries.bounds,
            keys.bounds,
            queries.longest,
            keys.longest,
            scale=scale,
            window_size=window,
            enable_gqa=grouped,
            num_splits=1,  # a sequence's result must not depend on those beside it
        )
        return cast(Tensor, seen)
    parts = []
    for (q0, q1), (k0, k1) in zip(pairwise(queries.bounds.tolist()), pairwise(keys.bounds.tolist()), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in (query[q0:q1], key[k0:k1], value[k0:k1]))
        mask = _window_mask(q1 - q0, k1 - k0, window).to(query.device)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _window_mask(queries: int, keys: int, window: tuple[int, int]) -> Tensor:
    distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
    left, right = window
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    return seen


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sequences: Sequences,
    **_ignored: Any,
) -> tuple[Tensor, None]:
    """Query, key, value [1, heads, tokens, head size] -> [1, tokens, heads, head size]: as transformers calls it."""
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0) if module.is_causal else (reach, reach)
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    return varlen_attention(q, k, v, sequences, sequences, scale=scaling, window=window)[None], None


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers; it builds no masks for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _interface)
