"""Bag of words: the ordinary tokens' outputs, pooled over the text, must tell which words the text has.

    o_v = max over the text's real ordinary tokens i of  z_i,v          z = masked-language-model logits
    L   = mean over texts of  - sum_v w_v log softmax(o)_v

`o` is the ordinary-token embedding, a vector over the vocabulary; `w` are the weights of the words of the text. It is
a way to pre-train an encoder for retrieval before it is distilled: the special token learns to reconstruct the text
through a weak decoder, and this loss makes the other tokens carry its words, so that both together represent it. The
whole of it: encoder masked-language-model loss + decoder loss + 0.1 times this one.

Forms: `bag_weights` gives each word that occurs 1 / length, once, as the official code does: a repeated word weighs no
more than a single one and the weights then sum to less than 1; `count_repeats` adds its occurrences up instead. The
code masks padding by adding -1000 to its logits, ours leaves it out; both agree while real logits stay within 1000 of
those of the padding.

Source: RetroMAE v2 / DupMAE, arXiv 2211.08769, official code staoxiao/RetroMAE @ ee375876a5
(`src/pretrain/modeling_duplex.py`). A library function: no job objective yet.

Use when: the student's base model was never trained for retrieval and there is much text without queries.

Reported: MS MARCO passage MRR@10 .4102 with both parts, .4008 with the special token's decoding alone, .4002 with the
ordinary tokens' alone; .426 after distillation (RetroMAE .416); BEIR-18 average nDCG@10 .477 (RetroMAE .452).

Edges: a text without real tokens or without weights adds nothing; a batch of those is 0 with zero gradient. Where
several tokens share the maximum they share its gradient.
"""

import torch
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_bool_like, require_finite, working_dtype
from pipelines.objectives.masked import zero_probability_logit

__all__ = ["bag_of_words_loss", "bag_weights", "ordinary_token_embedding"]


def bag_of_words_loss(token_logits: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weighted cross-entropy between a text's words and the softmax of its pooled token logits.

    Args:
        token_logits: [texts, length, vocabulary], of ordinary tokens only: drop the special token's column first.
        weights: [texts, vocabulary], >= 0, see `bag_weights`; constants.
        mask: [texts, length] bool, True = real token; None = all. What stands at False is ignored, NaN included.

    Returns:
        Scalar >= 0, averaged over the texts that have a token and a weight.

    Raises:
        ObjectiveError: shapes or dtypes disagree, NaN, infinite or negative weights, NaN or infinite logits.
    """
    embedding = ordinary_token_embedding(token_logits, mask)
    if weights.shape != embedding.shape or not weights.is_floating_point():
        raise ObjectiveError(
            f"bag_of_words: weights must be floating {tuple(embedding.shape)}, "
            f"got {weights.dtype} of shape {tuple(weights.shape)}"
        )
    weights = weights.detach().to(embedding.dtype)
    require_finite("bag_of_words", "weights", weights)
    if bool((weights < 0).any()):
        raise ObjectiveError(f"bag_of_words: weights must not be negative, the smallest is {float(weights.min())}")
    counted = (weights > 0).any(dim=1)
    if mask is not None:
        counted = counted & mask.any(dim=1)
    per_text = -(weights * embedding.log_softmax(dim=1)).sum(dim=1)
    return per_text.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)


def ordinary_token_embedding(token_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Maximum over the real tokens, for each entry of the vocabulary; 0 for a text without any.

    Args:
        token_logits: [texts, length, vocabulary].
        mask: [texts, length] bool, True = real token; None = all.

    Returns:
        [texts, vocabulary], at least float32.

    Raises:
        ObjectiveError: wrong shape or dtype, NaN or infinite logits at a real token.
    """
    if token_logits.ndim != 3 or 0 in token_logits.shape[1:] or not token_logits.is_floating_point():
        raise ObjectiveError(
            "bag_of_words: token_logits must be a floating [texts, length, vocabulary] tensor, "
            f"got {token_logits.dtype} of shape {tuple(token_logits.shape)}"
        )
    if mask is None:
        require_finite("bag_of_words", "token_logits", token_logits)
        return token_logits.to(working_dtype(token_logits)).amax(dim=1)
    require_bool_like("bag_of_words", "mask", mask, token_logits[..., 0])
    padding = ~mask.unsqueeze(2)
    require_finite("bag_of_words", "token_logits", token_logits.masked_fill(padding, 0))
    logits = token_logits.to(working_dtype(token_logits))
    pooled = logits.masked_fill(padding, zero_probability_logit(logits.dtype)).amax(dim=1)
    return pooled.masked_fill(~mask.any(dim=1, keepdim=True), 0)


def bag_weights(
    token_ids: Tensor, mask: Tensor | None = None, *, vocabulary_size: int, count_repeats: bool = False
) -> Tensor:
    """Weight of every word of the vocabulary in each text.

    Args:
        token_ids: [texts, length] int64, ordinary tokens only.
        mask: [texts, length] bool, True = real token; None = all.
        vocabulary_size: entries of the vocabulary.
        count_repeats: a word that occurs twice weighs 2 / length; default: 1 / length, as the official code.

    Returns:
        float32 [texts, vocabulary_size].

    Raises:
        ObjectiveError: shapes or dtypes disagree, a real token's id outside the vocabulary.
    """
    if token_ids.ndim != 2 or token_ids.dtype != torch.int64:
        raise ObjectiveError(
            f"bag_of_words: token_ids must be int64 [texts, length], got {token_ids.dtype} {tuple(token_ids.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(token_ids, dtype=torch.bool)
    require_bool_like("bag_of_words", "mask", mask, token_ids)
    ids = token_ids.masked_fill(~mask, 0)
    outside = (ids < 0) | (ids >= vocabulary_size)
    if bool(outside.any()):
        raise ObjectiveError(
            f"bag_of_words: token id {int(ids[outside][0])} is outside the vocabulary of {vocabulary_size}"
        )
    counts = torch.zeros(len(ids), vocabulary_size, device=ids.device).scatter_add_(1, ids, mask.float())
    length = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (counts if count_repeats else counts.clamp(max=1)) / length
