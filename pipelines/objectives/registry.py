"""Every objective by the name a job writes: its function, what it reads, the term with its parameters.

Enters: a term of `training.objective`. Leaves: the function to call and its keyword parameters. Data
(positives, masks) and parameters (temperatures) are both keywords of the functions; here they are told apart,
so that the training loop knows what to gather, and a test can hold parameters and term fields together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel
from torch import Tensor

from pipelines.objective_terms import CPRD, InfoNCE, ListKL, MarginMSE
from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.margin_mse import margin_mse_loss

__all__ = ["OBJECTIVES", "TERM_ONLY_FIELDS", "ObjectiveInfo", "term_parameters"]

TERM_ONLY_FIELDS = frozenset({"name", "weight"})
"""Fields of a term that belong to the sum of objectives and not to the function."""


@dataclass(frozen=True)
class ObjectiveInfo:
    """One objective.

    Attributes:
        function: called as `function(student_scores, teacher_scores, mask, **data, **parameters)` when
            `inputs` is `scores`, as `function(query_embeddings, document_embeddings, **data, **parameters)`
            when it is `embeddings`; returns a scalar.
        inputs: what the function's first tensors are.
        data_inputs: names of the further tensors it takes from the batch, required or not.
        term: the class whose fields, apart from `TERM_ONLY_FIELDS`, are the function's parameters.
    """

    function: Callable[..., Tensor]
    inputs: Literal["scores", "embeddings"]
    data_inputs: tuple[str, ...]
    term: type[BaseModel]


OBJECTIVES: MappingProxyType[str, ObjectiveInfo] = MappingProxyType(
    {
        "cprd": ObjectiveInfo(cprd_loss, "scores", ("positives", "valid"), CPRD),
        "list_kl": ObjectiveInfo(list_kl_loss, "scores", (), ListKL),
        "margin_mse": ObjectiveInfo(margin_mse_loss, "scores", ("positive",), MarginMSE),
        "info_nce": ObjectiveInfo(info_nce_loss, "embeddings", ("positive", "excluded"), InfoNCE),
    }
)


def term_parameters(term: BaseModel) -> dict[str, Any]:
    """Keyword parameters that a term gives to its function."""
    return {name: value for name, value in term if name not in TERM_ONLY_FIELDS}
