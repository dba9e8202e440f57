"""The section about rounds: how often candidates are mined anew, and whether the ranker learns along (AR2)."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.spec_sections.base import LearningRate, Positive, Section, TrainingDtype
from pipelines.spec_sections.simans import SimansSection
from pipelines.spec_sections.workers import WorkersSpec

__all__ = ["AdversarialSpec", "RankerStepsSpec", "RoundsSpec"]


class RankerStepsSpec(Section):
    """How the ranker learns in each round: listwise cross-entropy of the positive against the sampled negatives."""

    steps_per_round: Positive = 500
    queries_per_step: Positive = 16
    learning_rate: LearningRate = 1e-6
    """Of a ranker that is warmed up already; its schedule counts its own steps, over all rounds."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 2.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    dtype: TrainingDtype = "auto"
    checkpoint_every_steps: Positive = 50
    workers: WorkersSpec | None = None
    """Null: it learns in the job's own process, in the service the driver's, which has a GPU only if given one. Its
    workers end with the phase, so the student's may book the same devices after them."""


class AdversarialSpec(SimansSection):
    """AR2 (arXiv 2110.03611): each round the ranker learns from the negatives that the current student finds.

    A list has `training.candidates_per_query` - 1 negatives, drawn from `candidates.max_candidates` that were mined.
    """

    sampling: Literal["uniform", "simans"] = "uniform"
    """`uniform`: as in AR2. `simans`: likelier the nearer the student's score is to that of the positive."""
    queries_per_round: Positive | None = None
    """So many training queries a round, one lot after the other; null: all in every round."""
    ranker: RankerStepsSpec = RankerStepsSpec()
    refresh_steps_early: Annotated[int, Field(ge=0)] = 0
    """The index for the next round is made from the student as it is so many steps before its round ends, while it goes
    on learning. 0: from the finished round's student, and nobody learns meanwhile."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        self.require_simans_read("sampling", self.sampling)
        return self


class RoundsSpec(Section):
    """Mine, score, train, and again with the student that this made. A number alone is `count`."""

    count: Annotated[int, Field(ge=1, le=100)] = 1
    mode: Literal["distillation", "adversarial"] = "distillation"
    """`distillation`: the teacher stays as it is. `adversarial`: it is a ranker that learns in every round, and this
    job's alone; with weight 0 for `ar2` it teaches as any teacher does, from refreshed negatives."""
    adversarial: AdversarialSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_count(cls, data: Any) -> Any:
        return {"count": data} if isinstance(data, int | float | str) and not isinstance(data, bool) else data

    @model_validator(mode="before")
    @classmethod
    def _has_settings(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mode") == "adversarial" and data.get("adversarial") is None:
            return {**data, "adversarial": {}}
        return data

    @model_validator(mode="after")
    def _belongs_to_its_mode(self) -> Self:
        if self.adversarial and self.mode != "adversarial":
            raise ValueError(f"adversarial is given, and mode is {self.mode!r}, which does not read it")
        if self.adversarial and self.adversarial.refresh_steps_early and self.count == 1:
            steps = self.adversarial.refresh_steps_early
            raise ValueError(f"adversarial.refresh_steps_early: {steps}, but no round follows the first")
        return self
