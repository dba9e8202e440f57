"""The sections of a job: data, models, candidates, training, evaluation; each frozen, typed and checked by itself.

Enters: parts of a mapping. Leaves: the classes that `pipelines.spec.DistillationSpec` is made of, and that everything
else imports from there. What can only be judged across sections is judged there.
"""

import itertools
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipelines.objective_terms import InfoNCE, ListKL, ObjectiveTerm

__all__ = [
    "BM25Spec",
    "CandidatesSpec",
    "DatasetSpec",
    "DenseSpec",
    "DualHeadSpec",
    "EvaluationSpec",
    "MatryoshkaSpec",
    "ModelSpec",
    "Name",
    "NegativeSampling",
    "RankerTrainingSpec",
    "Section",
    "StudentSpec",
    "TeacherSpec",
    "TrainingSpec",
    "UnlabelledSpec",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Positive = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
TrainingDtype = Literal["auto", "fp32", "bf16"]
"""No fp16: its gradients underflow without loss scaling, which the loop does not do."""


class Section(BaseModel):
    """Frozen, and unknown keys are refused: a misspelt setting is never silently the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UnlabelledSpec(Section):
    """How queries without any judgement take part: those in none of the named splits are the unlabelled pool."""

    use: bool = True
    max_queries: Positive | None = None
    positive: Literal["teacher_top", "none"] = "teacher_top"
    """`teacher_top`: the teacher's best candidate is the positive if it is confident enough; `none`: list only."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Softmax probability, over the query's list at temperature 1, that the top candidate must reach."""


class DatasetSpec(Section):
    """A folder in BEIR layout, or a Parquet file of triples."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    format: Literal["auto", "beir", "triples"] = "auto"
    train_split: Name | None = "train"
    """Judged training queries; null when there are none and the teacher's word is all there is."""
    dev_split: Name | None = None
    test_split: Name | None = "test"
    unlabelled: UnlabelledSpec = UnlabelledSpec()


class ModelSpec(Section):
    """Where weights come from: a folder, `package:<python package>` that carries them, or a hub id + revision."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    revision: Annotated[str, Field(max_length=128)] | None = None


class BM25Spec(Section):
    """Lexical candidates (Lucene BM25 variant of bm25s, English stemmer and stop words)."""

    top_k: Positive = 16
    k1: Annotated[float, Field(gt=0, le=10)] = 0.9
    b: Annotated[float, Field(ge=0, le=1)] = 0.4


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


class DenseSpec(Section):
    """Dense candidates: exact inner-product search with the current student, or with `encoder` when given."""

    top_k: Positive = 16
    encoder: StudentSpec | None = None

    @field_validator("encoder")
    @classmethod
    def _is_never_trained(cls, encoder: StudentSpec | None) -> StudentSpec | None:
        if encoder and (encoder.heads or encoder.matryoshka):
            raise ValueError("heads and matryoshka are learned in training, and a fixed encoder has none")
        return encoder


class CandidatesSpec(Section):
    """Who might be a hard negative: the union of the sources, each source's rank kept."""

    bm25: BM25Spec | None = BM25Spec()
    dense: DenseSpec | None = DenseSpec()
    max_candidates: Annotated[int, Field(ge=2, le=4096)] = 24
    """Per query after the union, best reciprocal-rank sum first."""
    queries_per_chunk: Annotated[int, Field(ge=1, le=65536)] = 16

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.bm25 is None and self.dense is None:
            raise ValueError("bm25 and dense are both null; candidates need at least one source")
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


class NegativeSampling(Section):
    """Which of a list's negatives take part in a step, where the list holds more than fit."""

    strategy: Literal["mixed", "simans"] = "mixed"
    """`mixed`: one half the teacher's best, the other half at random. `simans`: at random, likelier the nearer the
    teacher's score is to that of the positive (SimANS, EMNLP 2022); a query without a positive is drawn `mixed`."""
    a: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    """`simans`: how sharply the weight exp(-a (score - score of the positive - b)^2) falls."""
    b: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    """`simans`: how far above the positive's score, in teacher logits, the weight peaks; below 0 under it."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.strategy == "mixed" and (self.a, self.b) != (0.5, 0.0):
            raise ValueError(f"a {self.a} and b {self.b} belong to strategy 'simans'; 'mixed' does not read them")
        return self


class TrainingSpec(Section):
    """How the student learns from the ranked lists. One pass per epoch over every usable query."""

    objective: tuple[ObjectiveTerm, ...] = (
        ListKL(name="list_kl"),
        InfoNCE(name="info_nce"),
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    queries_per_step: Positive = 16
    candidates_per_query: Annotated[int, Field(ge=2, le=4096)] = 8
    positives_per_query: Positive = 1
    """At most so many of a query's judged positives in one list (`decoupled_softmax`, `sup_con` and `soft_top_k` use
    several)."""
    use_labels: bool = True
    """False: labels teach the teacher only, and the student treats labelled queries as unlabelled ones."""
    negatives: NegativeSampling = NegativeSampling()
    learning_rate: LearningRate = 3e-4
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: TrainingDtype = "fp32"
    checkpoint_every_steps: Positive = 50
    keep_checkpoints: Positive = 2

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        names = [term.name for term in self.objective]
        if len(set(names)) != len(names):
            raise ValueError(f"objective names a term twice: {names}; its curve could not be told apart")
        if not any(term.weight > 0 for term in self.objective):
            raise ValueError("objective needs at least one term with a weight above 0")
        if self.positives_per_query >= self.candidates_per_query:
            raise ValueError(
                f"positives_per_query: {self.positives_per_query} leaves no room for a negative among "
                f"candidates_per_query ({self.candidates_per_query})"
            )
        return self


class EvaluationSpec(Section):
    """What is measured on `dataset.test_split` before and after."""

    max_queries: Positive | None = None
    rerank_depth: Annotated[int, Field(ge=1, le=1000)] = 20
    """Candidates per test query (BM25 and dense union) that the teacher re-ranks."""
    label_only_control: bool = True
    """Also train the same student, same steps, on the labelled queries alone: the honest comparison."""
