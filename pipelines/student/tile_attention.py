"""Attention of a student that trains in bf16 on a CPU: matrix products, which AMX tiles do, keeping its inputs only.

Enters: queries, keys and values as transformers calls an attention. Leaves: what each token sees. torch's fused kernel
(`scaled_dot_product_attention`) is slow there in its backward pass, three to six times at up to 256 tokens; the plain
form of two products and a softmax is fast, but keeps [rows, heads, tokens, tokens] of every layer until then. This one
computes the probabilities twice instead. Everything else (fp32, long texts, dropout, causal models, no gradient) goes
to the fused kernel as before.

    S = scale Q K^T + mask    P = softmax(S)    O = P V
    dV = P^T dO    dP = dO V^T    dS = P (dP - rowsum(P dP))    dQ = scale dS K    dK = scale dS^T Q
"""

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["IMPLEMENTATION", "LONGEST", "attend", "use_where_it_helps"]

IMPLEMENTATION = "dualdistill_tiles"
"""The name under which transformers' attention interface knows it."""
LONGEST = 256
"""Tokens. Beyond, the fused kernel is as fast (`docs/performance.md`)."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention with gradient, without dropout.

    Args:
        query: [rows, heads, tokens, head size].
        key: as `query`.
        value: as `query`.
        mask: bool, broadcastable to [rows, heads, tokens, tokens], True = seen; None = all are. A token that sees
            nothing sees all.
        scale: of the dot products.

    Returns:
        As `query`.
    """
    return cast(Tensor, _Attend.apply(query, key, value, mask, scale))  # type: ignore[no-untyped-call]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        return torch.matmul(_probabilities(query, key, mask, scale), value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, mask = ctx.saved_tensors
        seen = _probabilities(query, key, mask, ctx.scale)
        of_value = torch.matmul(seen.transpose(2, 3), gradients[0])
        of_seen = torch.matmul(gradients[0], value.transpose(2, 3))
        of_scores = torch._softmax_backward_data(of_seen, seen, -1, seen.dtype)
        of_scores *= ctx.scale
        return torch.matmul(of_scores, key), torch.matmul(of_scores.transpose(2, 3), query), of_value, None, None


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def use_where_it_helps(backbone: Any) -> None:
    """Let a transformers model on a CPU attend so, if it would use the fused kernel; its weights stay as they are."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if backbone.device.type == "cpu" and backbone.config._attn_implementation == "sdpa":
        AttentionInterface.register(IMPLEMENTATION, _interface)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        backbone.set_attn_implementation(IMPLEMENTATION)


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [rows, heads, tokens, head size] in, [rows, tokens, heads, head size] out."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    fits = (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and query.shape == key.shape
        and query.shape[2] <= LONGEST
        and dropout == 0
        and not (causal and attention_mask is None)
        and (attention_mask is None or attention_mask.dtype == torch.bool)
        and more.get("position_bias") is None
        and more.get("cache") is None
    )
    if not fits:
        return cast(
            tuple[Tensor, None],
            sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                is_causal=is_causal,
                **more,
            ),
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None
