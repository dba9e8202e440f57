"""Sections about the two models: the student with its heads and prefixes, the teacher and how it is trained first."""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines.spec_sections.base import Dtype, LearningRate, ModelSpec, Positive, Section, TrainingDtype
from pipelines.spec_sections.curriculum import WarmStartSpec
from pipelines.spec_sections.workers import WorkersSpec

__all__ = [
    "AnswersSpec",
    "AutoscaleSpec",
    "DualHeadSpec",
    "MatryoshkaSpec",
    "RankerTrainingSpec",
    "StudentSpec",
    "TeacherSpec",
]


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
    """The dual encoder that is trained: any Hugging Face encoder, pooled to one vector, projected if asked."""

    model: ModelSpec
    num_layers: Positive | None = None
    """Keep only the first layers of the checkpoint; null keeps all."""
    pooling: Literal["mean", "cls", "last_token"] = "mean"
    """`last_token`: of the text's own tokens, special ones included; for decoders, whose last token has read all."""
    projection: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Dimensions of a trained linear layer, without bias, on the pooled vector; null serves the pooled vector."""
    normalize: bool = True
    max_length: Annotated[int, Field(ge=8, le=32768)] = 256
    query_prompt: Annotated[str, Field(max_length=2048)] = ""
    document_prompt: Annotated[str, Field(max_length=2048)] = ""
    warm_start: WarmStartSpec | None = None
    """Of a student with fewer layers than its checkpoint: it first follows the whole encoder's hidden states."""
    heads: DualHeadSpec | None = None
    matryoshka: MatryoshkaSpec | None = None

    @model_validator(mode="after")
    def _is_cut_to_be_warmed_up(self) -> Self:
        if self.warm_start and self.num_layers is None:
            raise ValueError(
                "warm_start: a student with all layers of its checkpoint has nothing to follow; set num_layers"
            )
        return self

    @model_validator(mode="after")
    def _prefixes_are_of_one_head(self) -> Self:
        if self.heads and self.projection:
            raise ValueError(
                f"projection {self.projection} and heads exclude each other: heads project; set heads.dimension"
            )
        if self.projection and self.matryoshka and self.matryoshka.dimensions[0] >= self.projection:
            raise ValueError(
                f"matryoshka.dimensions has {self.matryoshka.dimensions[0]}, which is not below projection "
                f"{self.projection}"
            )
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
    workers: WorkersSpec | None = None
    """Null: it learns in the job's own process, in the service the driver's, which has a GPU only if given one."""


PROMPTS = {
    "qwen3_reranker": (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: {query}\n<Document>: {passage}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
}
"""Prompts that have a name: the one of a family of rerankers, as its model card gives it."""


class AnswersSpec(Section):
    """A causal language model scores by logit(positive) - logit(negative) of the token that follows the prompt."""

    positive: Annotated[str, Field(min_length=1, max_length=64, pattern="^[^,]+$")] = "yes"
    negative: Annotated[str, Field(min_length=1, max_length=64, pattern="^[^,]+$")] = "no"


class AutoscaleSpec(Section):
    """The pool's size follows the backlog, so that it is gone in time; no replica stays when nothing is left to do."""

    min_replicas: Annotated[int, Field(ge=0, le=1024)] = 0
    max_replicas: Annotated[int, Field(ge=1, le=1024)]
    finish_within_minutes: Annotated[float, Field(gt=0, le=525600)] = 60.0
    """Counted from the job's first pair that needs the teacher."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class TeacherSpec(Section):
    """The cross-encoder: scored as it is, or first fine-tuned on the labelled queries when `train` is given."""

    model: ModelSpec
    max_length: Annotated[int, Field(ge=8, le=32768)] = 256
    template: Annotated[str, Field(max_length=16384)] = "pair"
    """`pair`: as the tokenizer joins two texts; `qwen3_reranker`; or a prompt with `{query}` and `{passage}` in it."""
    truncation: Literal["passage_end", "passage_start", "longest_first"] = "passage_end"
    """What is cut from a pair that is too long. The first two keep the query whole."""
    answers: AnswersSpec | None = None
    """For causal language models; null is a sequence classifier with one label."""
    backend: Literal["auto", "torch", "torch_compiled", "openvino"] = "auto"
    """`auto`: openvino on CPUs where it is installed and knows the model's family, else torch."""
    dtype: Dtype = "auto"
    tokens_per_batch: Annotated[int, Field(ge=64)] | None = None
    """Padded tokens of a batch; null finds a good number by a short calibration, once per device."""
    train: RankerTrainingSpec | None = None
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of a pool of fixed size; where the pool begins when `autoscale` is given."""
    autoscale: AutoscaleSpec | None = None
    cpus_per_replica: Annotated[float, Field(ge=0, le=256)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0, le=16)] = 0.0

    @field_validator("template")
    @classmethod
    def _has_both_places(cls, template: str) -> str:
        if template == "pair" or template in PROMPTS:
            return template
        query, passage = (template.find(place) for place in ("{query}", "{passage}"))
        once = template.count("{query}") == template.count("{passage}") == 1
        if not once or query > passage:
            raise ValueError(
                f"must be 'pair', {', '.join(map(repr, PROMPTS))}, or a prompt with {{query}} and then {{passage}}, "
                f"each once; got {template[:200]!r}"
            )
        return template

    @model_validator(mode="after")
    def _answers_need_a_prompt(self) -> Self:
        if self.answers and self.template == "pair":
            raise ValueError("answers is for causal language models, which need a prompt: set template")
        if self.train and (self.answers or self.template != "pair"):
            raise ValueError("train fine-tunes sequence classifiers on plain pairs; it excludes answers and template")
        return self

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> Self:
        if self.autoscale and not self.autoscale.min_replicas <= self.replicas <= self.autoscale.max_replicas:
            raise ValueError(
                f"replicas {self.replicas} lies outside autoscale.min_replicas {self.autoscale.min_replicas} to "
                f"autoscale.max_replicas {self.autoscale.max_replicas}"
            )
        return self

    @property
    def prompt(self) -> str:
        """`pair`, or the text of the prompt."""
        return PROMPTS.get(self.template, self.template)
