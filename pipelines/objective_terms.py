"""What a job may write under `training.objective`: one typed class per loss, told apart by `name`.

Enters: `{name, weight, **parameters}` from YAML, CLI or REST. Leaves: a frozen term whose fields, apart from
`name` and `weight`, are exactly the keyword parameters of the function of that name in `pipelines.objectives`
(a test holds the two together). It lives below `objectives` because the spec is the floor everybody stands on.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CPRD", "InfoNCE", "ListKL", "MarginMSE", "ObjectiveTerm"]

Temperature = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Term(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Weight = 1.0


class CPRD(_Term):
    """Contrastive partial ranking distillation: the teacher's order of the hard negatives (arXiv 2407.07479)."""

    name: Literal["cprd"]
    temperature: Temperature = 0.05
    valid_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    max_valid: Annotated[int, Field(ge=1)] | None = None
    reduction: Literal["sum_over_positions_mean_over_queries", "mean_over_terms", "sum"] = "mean_over_terms"


class ListKL(_Term):
    """KL between the softmax of teacher and student over each query's list."""

    name: Literal["list_kl"]
    temperature: Temperature = 0.05
    teacher_temperature: Temperature = 1.0
    standardise_teacher: bool = False
    direction: Literal["forward", "reverse"] = "forward"
    scale_by_temperature_squared: bool = False


class MarginMSE(_Term):
    """Squared error between the margins of teacher and student (arXiv 2010.02666)."""

    name: Literal["margin_mse"]
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class InfoNCE(_Term):
    """Softmax cross-entropy of the positive against the whole batch's documents (arXiv 1807.03748)."""

    name: Literal["info_nce"]
    temperature: Temperature = 0.05


ObjectiveTerm = Annotated[CPRD | ListKL | MarginMSE | InfoNCE, Field(discriminator="name")]
