"""Matryoshka dimensions: prefixes of the served vector that are usable embeddings by themselves.

    v_d = v[:d] / |v[:d]|                                 for every d of the spec's dimensions
    L = mean_d mean_ij ( v_d,i . v_d,j - sg(v_i . v_j) )^2          over the real candidates, sg = no gradient

A slimmable network is trained so that the features of every sampled width agree with those of the full one. Here the
narrow feature is a slice of the full one, so |v_d - v|^2 (v_d filled up with zeros) is 2 - 2 |v[:d]|: it knows only how
much of the length lies in the prefix, and is content with a prefix of any direction, even the same for all texts. What
a search uses of an embedding are its similarities, so those are what must not change: every prefix scores a list as
the full vector does, and the full vector, held constant, is not dragged down to what the prefix can express.

Source: Efficient Controllable Multi-Task Architectures, arXiv 2308.11744 (configuration-invariant distillation); the
paper's text was not read, only its abstract, no official code was found, and matching similarities is our rendering.

Use when: one student must serve indexes of several sizes; dimensions are cut at query time, without another training.

Reported: 33.5% higher controllability on NYUD-v2 (its abstract); nothing on retrieval.

Edges: no real candidate gives exactly 0 with zero gradient; scores in half precision are compared in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.errors import ObjectiveError

__all__ = ["configuration_invariance_loss", "truncated"]


def truncated(embeddings: Tensor, dimension: int, *, normalize: bool) -> Tensor:
    """The first `dimension` numbers of each embedding, [n, dimension]; of unit length again if the student normalises.

    `SentenceTransformer(path, truncate_dim=dimension).encode(texts, normalize_embeddings=True)` gives the same.

    Raises:
        ObjectiveError: there are not that many numbers to take.
    """
    if not 1 <= dimension <= embeddings.shape[-1]:
        raise ObjectiveError(f"an embedding of {embeddings.shape[-1]} dimensions cannot be cut to {dimension}")
    prefix = embeddings[..., :dimension]
    return nn.functional.normalize(prefix, dim=-1) if normalize else prefix


def configuration_invariance_loss(
    scores_by_dimension: Sequence[Tensor], full_scores: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean over the configurations of the mean squared difference between their similarities and the full vector's.

    Args:
        scores_by_dimension: one [queries, candidates] tensor of similarities for each truncated dimension.
        full_scores: [queries, candidates], similarities of the full embedding; never receives a gradient.
        mask: [queries, candidates] bool, True = real candidate; None = all. What stands at False has no influence.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: no configuration, shapes or dtypes disagree, NaN or infinite scores at a real candidate.
    """
    if not scores_by_dimension:
        raise ObjectiveError("configuration_invariance: there is no truncated dimension to compare")
    if mask is None:
        mask = torch.ones_like(full_scores, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ObjectiveError(f"configuration_invariance: mask must be bool, got {mask.dtype}")
    for label, tensor in (("mask", mask), *(("scores_by_dimension", scores) for scores in scores_by_dimension)):
        if tensor.shape != full_scores.shape:
            raise ObjectiveError(
                f"configuration_invariance: {label} {tuple(tensor.shape)} and "
                f"full_scores {tuple(full_scores.shape)} must have one shape"
            )
    dtype = torch.promote_types(full_scores.dtype, torch.float32)
    target = full_scores.detach().masked_fill(~mask, 0).to(dtype)
    squares = [(scores.masked_fill(~mask, 0).to(dtype) - target).square().sum() for scores in scores_by_dimension]
    loss = torch.stack(squares).mean() / mask.sum().clamp(min=1)
    if not bool(torch.isfinite(loss.detach())):
        raise ObjectiveError("configuration_invariance: the scores hold NaN, infinity, or differ beyond all bounds")
    return loss
