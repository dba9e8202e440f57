"""Every objective by the name a job writes: its function, the term with its parameters, the tensors it reads.

Enters: a term of `training.objective`. Leaves: the function to call, its parameters, and the names of the tensors it
asks for. A function asks by parameter name: what is no field of its term and stands in `TENSORS`, the vocabulary, is a
tensor of the batch (the few other optional arguments are for those who call the function themselves). So a new
objective needs a file, a term and one line here, and the training loop nothing.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pipelines import objective_terms as terms
from pipelines.objectives.adr_mse import adr_mse_loss
from pipelines.objectives.amcl import amcl_loss
from pipelines.objectives.approx_ndcg import approx_ndcg_loss
from pipelines.objectives.ar2 import ar2_code_compat_loss, ar2_loss
from pipelines.objectives.binary_kl import binary_kl_loss, binary_kl_norm_loss
from pipelines.objectives.cmim import cmim_loss
from pipelines.objectives.cprd import cprd_loss
from pipelines.objectives.cwcl import cwcl_loss
from pipelines.objectives.dcl import dcl_loss, dclw_loss
from pipelines.objectives.decoupled_softmax import decoupled_softmax_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.lambda_loss import lambda_loss
from pipelines.objectives.list_kl import list_kl_loss
from pipelines.objectives.list_mle import list_mle_loss, p_list_mle_loss
from pipelines.objectives.list_net import list_net_loss
from pipelines.objectives.m3_kd import m3_kd_loss
from pipelines.objectives.margin_mse import margin_mse_loss
from pipelines.objectives.metrix import metrix_loss
from pipelines.objectives.mochi import mochi_loss
from pipelines.objectives.mw import mw_loss
from pipelines.objectives.nspt import nspt_loss
from pipelines.objectives.ranknet import ranknet_loss
from pipelines.objectives.rocketqa_v2 import rocketqa_v2_loss
from pipelines.objectives.siglip import siglip_loss
from pipelines.objectives.soft_top_k import soft_top_k_loss
from pipelines.objectives.sup_con import sup_con_loss
from pipelines.objectives.uniformity_alignment import uniformity_alignment_loss
from pipelines.objectives.unpg import unpg_loss
from pipelines.objectives.z_loss import z_loss

__all__ = ["OBJECTIVES", "TENSORS", "TERM_ONLY_FIELDS", "ObjectiveInfo", "term_parameters"]

TERM_ONLY_FIELDS = frozenset({"name", "weight", "learn"})
"""Fields of a term that belong to the sum of objectives and not to the function."""

TENSORS: Mapping[str, str] = MappingProxyType(
    {
        "student_scores": "[queries, candidates] student similarities of each query's own list",
        "teacher_scores": "[queries, candidates] raw teacher logits of that list",
        "mask": "[queries, candidates] bool, True = real candidate",
        "positive": "[queries] int64, column of the positive in the list, -1 = none",
        "positives": "[queries, candidates] bool, judged positives of the list",
        "columns": "[queries, candidates] int64, the candidate's row among the batch's documents",
        "query_embeddings": "[queries, dimensions]",
        "document_embeddings": "[documents, dimensions], every distinct document of the batch",
        "positive_document": "[queries] int64, row of the positive among the documents, -1 = none",
        "relevant": "[queries, documents] bool, known relevant: the positive, other positives, copies of their text",
        "same_query": "[queries, queries] bool, True where two queries have the same text (diagonal included)",
        "batch_scores": "[queries, documents] student similarities",
        "batch_teacher_scores": "[queries, documents] raw teacher logits where `scored`, 0 elsewhere",
        "scored": "[queries, documents] bool, True = the teacher scored the pair",
        "previous_query_embeddings": "[queries, dimensions] of the student as it was before this job, constants",
        "previous_document_embeddings": "[documents, dimensions] of the same",
    }
)
"""The tensors that a step offers, by name."""


@dataclass(frozen=True)
class ObjectiveInfo:
    """One objective.

    Attributes:
        function: called with keywords only, `function(**tensors, **parameters)`; returns a scalar.
        term: the class whose fields, apart from `TERM_ONLY_FIELDS`, are the function's parameters.
    """

    function: Callable[..., Tensor]
    term: type[terms.Term]

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the function's arguments that the term sets."""
        return frozenset(self.term.model_fields) - TERM_ONLY_FIELDS

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the function's other arguments, in order; those with a default are optional."""
        return tuple(name for name in inspect.signature(self.function).parameters if name not in self.parameters)

    @property
    def required_tensors(self) -> tuple[str, ...]:
        """Those of `tensors` without a default."""
        arguments = inspect.signature(self.function).parameters
        return tuple(name for name in self.tensors if arguments[name].default is inspect.Parameter.empty)


OBJECTIVES: Mapping[str, ObjectiveInfo] = MappingProxyType(
    {
        "cprd": ObjectiveInfo(cprd_loss, terms.CPRD),
        "ranknet": ObjectiveInfo(ranknet_loss, terms.RankNet),
        "list_mle": ObjectiveInfo(list_mle_loss, terms.ListMLE),
        "p_list_mle": ObjectiveInfo(p_list_mle_loss, terms.PListMLE),
        "lambda_loss": ObjectiveInfo(lambda_loss, terms.LambdaLoss),
        "adr_mse": ObjectiveInfo(adr_mse_loss, terms.ADRMSE),
        "approx_ndcg": ObjectiveInfo(approx_ndcg_loss, terms.ApproxNDCG),
        "list_kl": ObjectiveInfo(list_kl_loss, terms.ListKL),
        "margin_mse": ObjectiveInfo(margin_mse_loss, terms.MarginMSE),
        "list_net": ObjectiveInfo(list_net_loss, terms.ListNet),
        "binary_kl": ObjectiveInfo(binary_kl_loss, terms.BinaryKL),
        "binary_kl_norm": ObjectiveInfo(binary_kl_norm_loss, terms.BinaryKLNorm),
        "m3_kd": ObjectiveInfo(m3_kd_loss, terms.M3KD),
        "rocketqa_v2": ObjectiveInfo(rocketqa_v2_loss, terms.RocketQAv2),
        "ar2": ObjectiveInfo(ar2_loss, terms.AR2),
        "ar2_code_compat": ObjectiveInfo(ar2_code_compat_loss, terms.AR2CodeCompat),
        "z_loss": ObjectiveInfo(z_loss, terms.ZLoss),
        "mw": ObjectiveInfo(mw_loss, terms.MW),
        "info_nce": ObjectiveInfo(info_nce_loss, terms.InfoNCE),
        "siglip": ObjectiveInfo(siglip_loss, terms.SigLIP),
        "sup_con": ObjectiveInfo(sup_con_loss, terms.SupCon),
        "dcl": ObjectiveInfo(dcl_loss, terms.DCL),
        "dclw": ObjectiveInfo(dclw_loss, terms.DCLW),
        "decoupled_softmax": ObjectiveInfo(decoupled_softmax_loss, terms.DecoupledSoftmax),
        "soft_top_k": ObjectiveInfo(soft_top_k_loss, terms.SoftTopK),
        "cmim": ObjectiveInfo(cmim_loss, terms.CMIM),
        "cwcl": ObjectiveInfo(cwcl_loss, terms.CWCL),
        "uniformity_alignment": ObjectiveInfo(uniformity_alignment_loss, terms.UniformityAlignment),
        "mochi": ObjectiveInfo(mochi_loss, terms.MoCHi),
        "metrix": ObjectiveInfo(metrix_loss, terms.Metrix),
        "unpg": ObjectiveInfo(unpg_loss, terms.UNPG),
        "amcl": ObjectiveInfo(amcl_loss, terms.AMCL),
        "nspt": ObjectiveInfo(nspt_loss, terms.NSPT),
    }
)


def term_parameters(term: terms.Term) -> dict[str, Any]:
    """Keyword parameters that a term gives to its function."""
    return {name: value for name, value in term if name not in TERM_ONLY_FIELDS}
