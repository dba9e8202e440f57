"""Sections about the two models: the student with its heads and prefixes, the teacher and how it is trained first."""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines.spec_sections.base import Dtype, LearningRate, ModelSpec, Positive, Section, TrainingDtype

__all__ = ["DualHeadSpec", "MatryoshkaSpec", "RankerTrainingSpec", "StudentSpec", "TeacherSpec"]


class DualHeadSpec(Section):
    """Two linear heads on the pooled vector: the contrastive one learns from labels, the other from the teacher."""

    dimension: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Of each head; null is the encoder's hidden size."""
    serve: Literal["contrastive", "interpolated"] = "interpolated"
    """`interpolated`: one vector, twice as long as a head, with the score alpha * contrastive + (1 - alpha) / beta *
    distillation; `contrastive`: that head alone, the other is left behind when training ends."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    beta: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class MatryoshkaSpec(Section):
    """Prefixes of the student's vectors that must search as well as they can by themselves."""

    dimensions: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)]
    """Strictly decreasing, each below the length of the vectors."""
    invariance_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Of the squared difference between the similarities of prefixes and of full vectors."""
    dimensions_per_step: Positive | None = None
    """How many of them are drawn for each training step; null trains all in every step."""

    @field_validator("dimensions")
    @classmethod
    def _decreasing(cls, dimensions: tuple[int, ...]) -> tuple[int, ...]:
        if any(longer <= shorter for longer, shorter in itertools.pairwise(dimensions)):
            raise ValueError(f"must be strictly decreasing, got {list(dimensions)}")
        return dimensions

    @field_validator("dimensions_per_step")
    @classmethod
    def _enough_to_draw(cls, count: int | None, info: ValidationInfo) -> int | None:
        known = len(info.data.get("dimensions", ()))
        if count is not None and known and count > known:
            raise ValueError(f"{count} cannot be drawn from {known} dimensions")
        return count


class StudentSpec(Section):
    """The dual encoder that is trained: any Hugging Face encoder, mean or CLS pooling."""

    model: ModelSpec
    num_layers: Positive | None = None
    """Keep only the first layers of the checkpoint; null keeps all."""
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_length: Annotated[int, Field(ge=8, le=32768)] = 256
    query_prompt: Annotated[str, Field(max_length=2048)] = ""
    document_prompt: Annotated[str, Field(max_length=2048)] = ""
    heads: DualHeadSpec | None = None
    matryoshka: MatryoshkaSpec | None = None

    @model_validator(mode="after")
    def _prefixes_are_of_one_head(self) -> Self:
        if self.heads and self.matryoshka:
            if self.heads.serve == "interpolated":
                raise ValueError(
                    "a matryoshka prefix of heads.serve 'interpolated' would be the contrastive head and little else; "
                    "set heads.serve to 'contrastive'"
                )
            longest, whole = self.matryoshka.dimensions[0], self.heads.dimension
            if whole is not None and longest >= whole:
                raise ValueError(f"matryoshka.dimensions has {longest}, which is not below heads.dimension {whole}")
        return self


class RankerTrainingSpec(Section):
    """Fine-tune the teacher first, on the labelled queries: listwise cross-entropy, 1 positive + negatives."""

    max_steps: Positive = 150
    lists_per_step: Positive = 4
    negatives_per_list: Positive = 7
    learning_rate: LearningRate = 1e-4
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: TrainingDtype = "auto"


class TeacherSpec(Section):
    """The cross-encoder: scored as it is, or first fine-tuned on the labelled queries when `train` is given."""

    model: ModelSpec
    max_length: Annotated[int, Field(ge=8, le=32768)] = 256
    dtype: Dtype = "auto"
    tokens_per_batch: Annotated[int, Field(ge=64)] = 8192
    train: RankerTrainingSpec | None = None
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    cpus_per_replica: Annotated[float, Field(ge=0, le=256)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0, le=16)] = 0.0
