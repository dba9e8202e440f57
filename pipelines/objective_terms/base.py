"""What every term of `training.objective` shares: its weight, what it may learn, and the number types of parameters."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LearnsFrom", "NonNegative", "Positive", "PositiveCount", "Probability", "Temperature", "Term", "View"]

Temperature = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveCount = Annotated[int, Field(ge=1)]
LearnsFrom = Literal["lists", "positives"]
View = Literal["contrastive", "distillation", "served"]


class Term(BaseModel):
    """One addend of the objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    LEARNS_FROM: ClassVar[LearnsFrom] = "positives"
    """`lists` when a ranked list without any positive teaches it something."""
    VIEW: ClassVar[View] = "contrastive"
    """Which vectors of a student with dual heads it sees: a head's, or those that are searched."""
    LEARNABLE: ClassVar[Mapping[str, Literal["positive", "real"]]] = {}
    """Parameters that may be trained with the student, and whether they stay positive."""

    name: str
    weight: NonNegative = 1.0
    learn: tuple[str, ...] = ()
    """Parameters that start at their value and are trained with the student."""

    @model_validator(mode="after")
    def _learns_what_can_be_learned(self) -> Self:
        for name in self.learn:
            if name not in self.LEARNABLE:
                raise ValueError(
                    f"learn: {name!r} cannot be learned here; can be: {sorted(self.LEARNABLE) or 'nothing'}"
                )
        return self
