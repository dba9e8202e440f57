"""Terms that match the teacher's values: distributions over lists, margins, probabilities of pairs."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipelines.objective_terms.base import LearnsFrom, Positive, PositiveCount, Probability, Temperature, Term, View

__all__ = [
    "AR2",
    "M3KD",
    "MW",
    "AR2CodeCompat",
    "BinaryKL",
    "BinaryKLNorm",
    "ListKL",
    "ListNet",
    "MarginMSE",
    "RocketQAv2",
    "ZLoss",
]

Epsilon = Annotated[float, Field(ge=0, lt=1)]


class ListKL(Term):
    """KL between the softmax of teacher and student over each query's list."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["list_kl"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    standardise_teacher: bool = False
    direction: Literal["forward", "reverse"] = "forward"
    scale_by_temperature_squared: bool = False


class MarginMSE(Term):
    """Squared error between the margins of teacher and student (arXiv 2010.02666)."""

    VIEW: ClassVar[View] = "distillation"

    name: Literal["margin_mse"]
    scale: Positive = 1.0


class ListNet(Term):
    """Cross-entropy of the student's softmax over each query's list under the teacher's (ICML 2007)."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["list_net"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    epsilon: Epsilon = 0.0


class _BinaryKL(Term):
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"
    LEARNABLE: ClassVar[Mapping[str, Literal["positive", "real"]]] = {"temperature": "positive", "bias": "real"}

    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    bias: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] = 0.0
    scale_by_temperature_squared: bool = False
    probability_clamp: Annotated[float, Field(gt=0, lt=0.5)] | None = None


class BinaryKL(_BinaryKL):
    """KL between the probabilities of each pair by itself (arXiv 2411.08937)."""

    VIEW: ClassVar[View] = "distillation"

    name: Literal["binary_kl"]


class BinaryKLNorm(_BinaryKL):
    """The same for the difference of the logits, against a fair coin (arXiv 2411.08937, code)."""

    VIEW: ClassVar[View] = "distillation"

    name: Literal["binary_kl_norm"]


class M3KD(Term):
    """Each candidate in turn against what follows it and the batch, weighted by the teacher (FlagEmbedding)."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["m3_kd"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0


class RocketQAv2(Term):
    """Divergence between retriever and ranker plus the ranker's cross-entropy (arXiv 2110.07367)."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["rocketqa_v2"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    form: Literal["paper", "code"] = "paper"


class AR2(Term):
    """The adversarial term: the ranker's verdict on the negatives the retriever expects (arXiv 2110.03611)."""

    VIEW: ClassVar[View] = "distillation"

    name: Literal["ar2"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0


class AR2CodeCompat(Term):
    """The whole retriever loss as AR2's released code computes it."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["ar2_code_compat"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    adversarial_weight: Probability = 0.5
    epsilon: Epsilon = 1e-7


class ZLoss(Term):
    """The positive's z-score within its list (arXiv 1604.08859)."""

    name: Literal["z_loss"]
    a: Positive = 1.0
    b: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] = 10.0


class MW(Term):
    """Every positive against every negative of every query (arXiv 2510.00137)."""

    name: Literal["mw"]
    temperature: Temperature = 0.05
    reduction: Literal["paper_sum", "mean_over_pairs"] = "paper_sum"
    chunk_size: PositiveCount = 16
