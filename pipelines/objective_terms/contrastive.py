"""Terms over the batch's embeddings: each query's positives against everything else."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipelines.objective_terms.base import NonNegative, Positive, PositiveCount, Temperature, Term

__all__ = ["CMIM", "DCL", "DCLW", "DecoupledSoftmax", "InfoNCE", "SigLIP", "SoftTopK", "SupCon"]


class InfoNCE(Term):
    """Softmax cross-entropy of the positive against the whole batch's documents (arXiv 1807.03748)."""

    LEARNABLE: ClassVar[Mapping[str, Literal["positive", "real"]]] = {"temperature": "positive"}

    name: Literal["info_nce"]
    temperature: Temperature = 0.05
    directions: tuple[
        Literal["query_to_document", "document_to_query", "query_to_query", "document_to_document"], ...
    ] = ("query_to_document",)
    partition: Literal["joint", "per_direction"] = "joint"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    teacher_margin: NonNegative | None = None
    hardness_mode: Literal["none", "hard_negatives", "in_batch_negatives", "all_negatives"] = "none"
    hardness_strength: NonNegative = 0.0

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if "query_to_document" not in self.directions or len(set(self.directions)) < len(self.directions):
            raise ValueError(f"directions: query_to_document and others, each once, not {list(self.directions)}")
        if self.hardness_strength > 0 and self.hardness_mode == "none":
            raise ValueError("hardness_strength: without effect while hardness_mode is none")
        return self


class SigLIP(Term):
    """Every pair of the batch as a yes-or-no question (arXiv 2303.15343)."""

    LEARNABLE: ClassVar[Mapping[str, Literal["positive", "real"]]] = {"scale": "positive", "bias": "real"}

    name: Literal["siglip"]
    scale: Positive = 10.0
    bias: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] = -10.0


class SupCon(Term):
    """Supervised contrastive learning with several positives, from both sides (arXiv 2004.11362)."""

    name: Literal["sup_con"]
    temperature: Temperature = 0.05
    directions: tuple[Literal["query_to_document", "document_to_query"], ...] = (
        "query_to_document",
        "document_to_query",
    )

    @model_validator(mode="after")
    def _one_or_both_directions(self) -> Self:
        if not self.directions or len(set(self.directions)) < len(self.directions):
            raise ValueError(f"directions: one or both, each once, not {list(self.directions)}")
        return self


class DCL(Term):
    """InfoNCE without the positive in its own denominator (arXiv 2110.06848)."""

    name: Literal["dcl"]
    temperature: Temperature = 0.1
    same_view_negatives: bool = False
    symmetric: bool = False


class DCLW(Term):
    """DCL that weighs far positives more (arXiv 2110.06848)."""

    name: Literal["dclw"]
    temperature: Temperature = 0.1
    sigma: Temperature = 0.5
    same_view_negatives: bool = False
    symmetric: bool = False
    detach_weight: bool = False


class DecoupledSoftmax(Term):
    """Every positive against the negatives only, not against the query's other positives (arXiv 2310.10636)."""

    name: Literal["decoupled_softmax"]
    form: Literal["decoupled", "softmax", "binary"] = "decoupled"
    temperature: Temperature = 0.05


class SoftTopK(Term):
    """All positives among the k best documents, in any order (arXiv 2310.10636)."""

    name: Literal["soft_top_k"]
    k: PositiveCount = 5
    alpha: Positive = 2.0
    temperature: Temperature = 0.05
    iterations: PositiveCount = 32


class CMIM(Term):
    """InfoNCE against the mean negative, so its value does not grow with the batch (arXiv 2502.19642)."""

    name: Literal["cmim"]
    temperature: Temperature = 0.05
