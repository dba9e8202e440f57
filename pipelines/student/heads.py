"""Dual heads: one linear head learns from labels, another from the teacher, and the served vector holds both.

    c = Wc h      d = Wd h                      contrastive and distillation head on the pooled vector h, no bias
    interpolated:  v = [ sqrt(alpha) c ; sqrt((1 - alpha) / beta) d ] / |.|        one vector, one norm
                   v . v' = alpha c~ . c~' + (1 - alpha) / beta  d~ . d~'          exactly
    contrastive:   v = c / |c|                  the distillation head is dropped at inference

A loss on probabilities (contrastive) and one on logits (distillation) pull one linear head apart while the backbone
under it could serve both; so each gets a head of its own. c~ and d~ are the two blocks of the served vector, each
divided by its factor: what is trained is what is searched, with an ordinary inner-product index, and a served vector is
one matrix times h. They share the norm of v, so c~ alone is not of unit length. A student that does not normalise has
the same identity without the norm. An interpolated vector is twice as long as a head, and so is its index.

Source: two heads, one served: Dual-Head KD, arXiv 2411.08937, official penghui-yang/DHKD. Interpolated probabilities:
DHO, arXiv 2505.07675, official erjui/DHO, whose distillation head reads L2-normalised features and multiplies its
logits by 100; here the student's own normalisation and the term's temperature do that. That the interpolated score of
dot products is one concatenated vector is dualdistill's observation, not the papers'.

Use when: labels and teacher disagree in scale or in kind, above all when labels are few; `contrastive` when the index
must not grow.

Reported: DHO, ImageNet over the previous best: +3% with 1% of the labels, +0.1% with 10% (its abstract); for retrieval
no number of either paper.

Edges: heads begin as the identity, or as orthogonal rows when they are of another size than h (columns when larger), so
the first vectors have the geometry of the pre-trained ones; alpha and beta are of no effect when only the contrastive
head is served.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.errors import ObjectiveError
from pipelines.spec import DualHeadSpec

__all__ = ["DualHeads", "StudentViews", "interpolated_probabilities", "keeping_geometry"]


@dataclass(frozen=True)
class StudentViews:
    """The same texts as a student serves them and as each of its heads sees them, float [n, dimensions].

    Without heads all three are one tensor.

    Attributes:
        served: what search uses.
        contrastive: for the terms that learn from labels.
        distillation: for the terms that learn from the teacher.
    """

    served: Tensor
    contrastive: Tensor
    distillation: Tensor


class DualHeads(nn.Module):
    """The two heads on a pooled vector [n, hidden]. Weights beyond the identity come from torch's global generator."""

    def __init__(self, hidden_size: int, spec: DualHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.head_dimension = spec.dimension or hidden_size
        self.contrastive = keeping_geometry(hidden_size, self.head_dimension)
        self.distillation = keeping_geometry(hidden_size, self.head_dimension)

    @property
    def served_dimension(self) -> int:
        """Length of a served vector."""
        return self.head_dimension * (2 if self.spec.serve == "interpolated" else 1)

    def served_weight(self) -> Tensor:
        """The one matrix [served, hidden] from pooled to served vectors, before their norm; with gradient."""
        if self.spec.serve == "contrastive":
            return self.contrastive.weight
        to_contrastive, to_distillation = self._factors()
        return torch.cat([to_contrastive * self.contrastive.weight, to_distillation * self.distillation.weight])

    def views(self, pooled: Tensor, *, normalize: bool) -> StudentViews:
        """Both heads and the served vector, in float32 even under autocast: the heads begin as exact identities.

        Args:
            pooled: float32 [n, hidden].
            normalize: whether vectors are brought to unit length; interpolated ones jointly.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            served = nn.functional.linear(pooled, self.served_weight())
            if normalize:
                served = nn.functional.normalize(served, dim=-1)
            if self.spec.serve == "interpolated":
                to_contrastive, to_distillation = self._factors()
                contrastive = served[:, : self.head_dimension] / to_contrastive
                return StudentViews(served, contrastive, served[:, self.head_dimension :] / to_distillation)
            distillation = self.distillation(pooled)
            if normalize:
                distillation = nn.functional.normalize(distillation, dim=-1)
            return StudentViews(served, served, distillation)

    def _factors(self) -> tuple[float, float]:
        return math.sqrt(self.spec.alpha), math.sqrt((1 - self.spec.alpha) / self.spec.beta)


def interpolated_probabilities(
    contrastive_logits: Tensor, distillation_logits: Tensor, *, alpha: float = 0.5, beta: float = 1.0
) -> Tensor:
    """DHO's inference over classes or lists: alpha softmax(contrastive) + (1 - alpha) softmax(distillation / beta).

    Search cannot use it, for a softmax needs the whole list; the served vector interpolates the logits instead.

    Args:
        contrastive_logits: [n, candidates], of the head that learned from labels.
        distillation_logits: [n, candidates], of the head that learned from the teacher.
        alpha: share of the first, in [0, 1].
        beta: temperature of the second, above 0; below 1 sharpens it. DHO evaluates with alpha = beta = 0.5.

    Returns:
        [n, candidates], each row sums to 1.

    Raises:
        ObjectiveError: shapes differ, or an impossible parameter.
    """
    if contrastive_logits.shape != distillation_logits.shape:
        raise ObjectiveError(
            f"interpolated_probabilities: contrastive_logits {tuple(contrastive_logits.shape)} and "
            f"distillation_logits {tuple(distillation_logits.shape)} must have one shape"
        )
    if not 0 <= alpha <= 1:
        raise ObjectiveError(f"interpolated_probabilities: alpha must be in [0, 1], got {alpha}")
    if not 0 < beta < math.inf:
        raise ObjectiveError(f"interpolated_probabilities: beta must be a positive finite number, got {beta}")
    return alpha * contrastive_logits.softmax(dim=-1) + (1 - alpha) * (distillation_logits / beta).softmax(dim=-1)


def keeping_geometry(hidden_size: int, dimension: int) -> nn.Linear:
    """A layer without bias that begins as the identity, or as orthogonal rows (columns when larger)."""
    head = nn.Linear(hidden_size, dimension, bias=False)
    if dimension == hidden_size:
        nn.init.eye_(head.weight)
    else:
        nn.init.orthogonal_(head.weight)
    return head
