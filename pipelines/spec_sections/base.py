"""What all sections of a job share: frozen and strict, the types of their numbers, where a model comes from."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Dtype", "LearningRate", "ModelSpec", "Name", "Positive", "Section", "TrainingDtype"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Positive = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Dtype = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
"""tf32: fp32 weights, matrix products on TF32 tensor cores (CUDA)."""
TrainingDtype = Literal["auto", "fp32", "bf16"]
"""No fp16: its gradients underflow without loss scaling, which the loop does not do."""


class Section(BaseModel):
    """Frozen, and unknown keys are refused: a misspelt setting is never silently the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Section):
    """Where weights come from: a folder, `package:<python package>` that carries them, or a hub id + revision."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    revision: Annotated[str, Field(max_length=128)] | None = None
