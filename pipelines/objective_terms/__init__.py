"""What a job may write under `training.objective`: one typed class per loss, told apart by `name`.

Enters: `{name, weight, **parameters}` from YAML, CLI or REST. Leaves: a frozen term whose fields, apart from
`name` and `weight`, are exactly the keyword parameters of the function of that name in `pipelines.objectives`
(a test holds the two together). It lives below `objectives` because the spec is the floor everybody stands on.
"""

from typing import Annotated

from pydantic import Field

from pipelines.objective_terms.base import Term, View
from pipelines.objective_terms.contrastive import (
    CMIM,
    DCL,
    DCLW,
    DecoupledSoftmax,
    InfoNCE,
    SigLIP,
    SoftTopK,
    SupCon,
)
from pipelines.objective_terms.matching import (
    AR2,
    M3KD,
    MW,
    AR2CodeCompat,
    BinaryKL,
    BinaryKLNorm,
    ListKL,
    ListNet,
    MarginMSE,
    RocketQAv2,
    ZLoss,
)
from pipelines.objective_terms.ranking import (
    ADRMSE,
    CPRD,
    ApproxNDCG,
    LambdaLoss,
    ListMLE,
    PListMLE,
    RankNet,
)
from pipelines.objective_terms.synthetic import (
    AMCL,
    CWCL,
    NSPT,
    UNPG,
    Metrix,
    MoCHi,
    UniformityAlignment,
)

__all__ = [
    "ADRMSE",
    "AMCL",
    "AR2",
    "CMIM",
    "CPRD",
    "CWCL",
    "DCL",
    "DCLW",
    "M3KD",
    "MW",
    "NSPT",
    "UNPG",
    "AR2CodeCompat",
    "ApproxNDCG",
    "BinaryKL",
    "BinaryKLNorm",
    "DecoupledSoftmax",
    "InfoNCE",
    "LambdaLoss",
    "ListKL",
    "ListMLE",
    "ListNet",
    "MarginMSE",
    "Metrix",
    "MoCHi",
    "ObjectiveTerm",
    "PListMLE",
    "RankNet",
    "RocketQAv2",
    "SigLIP",
    "SoftTopK",
    "SupCon",
    "Term",
    "UniformityAlignment",
    "View",
    "ZLoss",
]

ObjectiveTerm = Annotated[
    CPRD  # ranking
    | RankNet
    | ListMLE
    | PListMLE
    | LambdaLoss
    | ADRMSE
    | ApproxNDCG
    | ListKL  # matching
    | MarginMSE
    | ListNet
    | BinaryKL
    | BinaryKLNorm
    | M3KD
    | RocketQAv2
    | AR2
    | AR2CodeCompat
    | ZLoss
    | MW
    | InfoNCE  # contrastive
    | SigLIP
    | SupCon
    | DCL
    | DCLW
    | DecoupledSoftmax
    | SoftTopK
    | CMIM
    | CWCL  # synthetic
    | UniformityAlignment
    | MoCHi
    | Metrix
    | UNPG
    | AMCL
    | NSPT,
    Field(discriminator="name"),
]
