"""Terms that make negatives, weights or targets of their own: mixed embeddings, several heads, a previous student."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipelines.objective_terms.base import NonNegative, Positive, PositiveCount, Probability, Temperature, Term, View

__all__ = ["AMCL", "CWCL", "NSPT", "UNPG", "Metrix", "MoCHi", "UniformityAlignment"]

Slope = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


class CWCL(Term):
    """Continuously weighted contrast: the teacher's probabilities are in-batch soft labels (arXiv 2309.14580)."""

    VIEW: ClassVar[View] = "distillation"

    name: Literal["cwcl"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    weighting: Literal["sigmoid", "softmax"] = "sigmoid"
    weight_exponent: Positive = 1.0


class UniformityAlignment(Term):
    """Queries meet their documents, all else spreads over the sphere (Wang and Isola 2020; arXiv 2405.18570)."""

    name: Literal["uniformity_alignment"]
    alignment_weight: NonNegative = 1.0
    uniformity_weight: NonNegative = 1.0
    cross_weight: NonNegative = 1.0
    sharpness: Positive = 2.0


class MoCHi(Term):
    """InfoNCE with mixtures of hard negatives as further negatives (arXiv 2010.01028)."""

    name: Literal["mochi"]
    temperature: Temperature = 0.05
    hardest: PositiveCount = 32
    negative_mixtures: Annotated[int, Field(ge=0)] = 32
    query_mixtures: Annotated[int, Field(ge=0)] = 4
    max_query_share: Probability = 0.5
    teacher_margin: NonNegative | None = 0.0
    teacher_threshold: Probability | None = 0.5


class Metrix(Term):
    """Mixtures of positive and hard negative, relevant in proportion (arXiv 2106.04990)."""

    name: Literal["metrix"]
    hardest: PositiveCount = 1
    positive_margin: NonNegative = 0.0
    negative_margin: NonNegative = 0.5
    concentration: Positive = 2.0
    draws: Literal["batch", "pair"] = "batch"
    teacher_margin: NonNegative | None = 0.0
    teacher_threshold: Probability | None = 0.5


class UNPG(Term):
    """Softmax over documents and, for all queries, the filtered pairs of queries (arXiv 2203.11593)."""

    name: Literal["unpg"]
    scale: Positive = 20.0
    margin: NonNegative = 0.35
    whisker: NonNegative = 1.5


class AMCL(Term):
    """Several heads, each pair with a temperature per head (arXiv 2310.05615)."""

    LEARNABLE: ClassVar[Mapping[str, Literal["positive", "real"]]] = {
        "temperature": "positive",
        "temperature_slope": "real",
    }

    name: Literal["amcl"]
    heads: PositiveCount = 4
    temperature: Temperature = 0.2
    temperature_slope: Slope = 0.0
    temperature_weight: NonNegative = 0.0


class NSPT(Term):
    """Positives from the previous student, negatives from this one (COCONUT, arXiv 2310.02699)."""

    VIEW: ClassVar[View] = "served"

    name: Literal["nspt"]
    temperature: Temperature = 0.05
