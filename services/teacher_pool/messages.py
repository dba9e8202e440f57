"""What a driver and a replica say to each other. Free of torch, so that whoever only talks needs no engine."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DEPLOYMENT_NAME", "ScoreReply"]

DEPLOYMENT_NAME = "TeacherReplica"


@dataclass(frozen=True, eq=False)
class ScoreReply:
    """A replica's answer to one call of `score(pairs, job=...)`."""

    contract_fingerprint: str
    weights_version: int
    """Of the weights that made every logit of this reply."""
    logits: npt.NDArray[np.float32]
    """One per pair; NaN or infinite where the teacher gave that."""
    num_tokens: int
    seconds: float
    """That the engine was at work."""
