"""Terms that learn from the teacher's order of a list."""

from typing import ClassVar, Literal

from pipelines.objective_terms.base import (
    LearnsFrom,
    NonNegative,
    Positive,
    PositiveCount,
    Probability,
    Temperature,
    Term,
    View,
)

__all__ = ["ADRMSE", "CPRD", "ApproxNDCG", "LambdaLoss", "ListMLE", "PListMLE", "RankNet"]


class CPRD(Term):
    """Contrastive partial ranking distillation: the teacher's order of the hard negatives (arXiv 2407.07479)."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["cprd"]
    temperature: Temperature = 0.05
    valid_threshold: Probability | None = None
    valid_margin: Positive | None = None
    max_valid: PositiveCount | None = None
    directions: Literal["query_to_document", "both"] = "query_to_document"
    easy_negatives: bool = False
    reduction: Literal["sum_over_positions_mean_over_queries", "mean_over_terms", "sum"] = "mean_over_terms"


class RankNet(Term):
    """Logistic loss on the pairs that the teacher orders."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["ranknet"]
    temperature: Temperature = 0.05
    tie_margin: NonNegative = 0.0
    weight_by_difference: bool = False
    top_k: PositiveCount | None = None
    top_k_pairs: Literal["either", "both"] = "either"
    log_base: Literal["natural", "binary"] = "natural"


class ListMLE(Term):
    """Likelihood of the teacher's whole order under the student."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["list_mle"]
    temperature: Temperature = 0.05


class PListMLE(Term):
    """ListMLE whose early places weigh most."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["p_list_mle"]
    temperature: Temperature = 0.05
    weight_ranks: Literal["from_one", "from_zero"] = "from_one"


class LambdaLoss(Term):
    """Logistic loss on pairs, weighted by their effect on nDCG."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["lambda_loss"]
    temperature: Temperature = 0.05
    weighting: Literal["lambda_rank", "ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "none"] = "ndcg_loss2pp"
    mu: NonNegative = 10.0
    top_k: PositiveCount | None = None
    top_k_pairs: Literal["either", "both"] = "either"
    log_base: Literal["natural", "binary"] = "binary"
    reduction: Literal["sum_over_pairs_mean_over_queries", "mean_over_pairs", "sum"] = (
        "sum_over_pairs_mean_over_queries"
    )


class ADRMSE(Term):
    """Discounted squared error of soft ranks (arXiv 2405.07920)."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["adr_mse"]
    temperature: Temperature = 0.05


class ApproxNDCG(Term):
    """One minus nDCG with soft ranks."""

    VIEW: ClassVar[View] = "distillation"
    LEARNS_FROM: ClassVar[LearnsFrom] = "lists"

    name: Literal["approx_ndcg"]
    temperature: Temperature = 0.05
