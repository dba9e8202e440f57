"""Sections about training: the objective, which candidates of a list take part, how the optimizer moves."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.objective_terms import InfoNCE, ListKL, ObjectiveTerm
from pipelines.spec_sections.base import LearningRate, Positive, Section, TrainingDtype
from pipelines.spec_sections.curriculum import PacingSpec
from pipelines.spec_sections.filters import FilterSpec
from pipelines.spec_sections.metrics import MetricsSpec
from pipelines.spec_sections.simans import SimansSection
from pipelines.spec_sections.workers import WorkersSpec

__all__ = ["MomentumSpec", "NegativeSampling", "TrainingSpec"]


class NegativeSampling(SimansSection):
    """Which of a list's negatives take part in a step, where the list holds more than fit."""

    strategy: Literal["teacher_top", "student_top", "mixed", "simans"] = "mixed"
    """`teacher_top`: the teacher's best. `student_top`: those that the student liked best when it mined the list.
    `mixed`: one half the teacher's best, the other half at random. `simans`: at random, likelier the nearer the
    teacher's score is to that of the positive (SimANS, EMNLP 2022); a query without a positive is drawn `mixed`."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        self.require_simans_read("strategy", self.strategy)
        return self


class MomentumSpec(Section):
    """Documents of earlier steps as further negatives, encoded by a slowly moving copy of the student (MoCo, ALBEF)."""

    queue_size: Annotated[int, Field(ge=1, le=10_000_000)] = 4096
    """Documents that are kept; each costs the student's hidden size in memory, and one more column of scores."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Of the copy, per step."""


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
    filters: FilterSpec = FilterSpec()
    """What of a stored list is read at all; `negatives` then draws from what is left."""
    negatives: NegativeSampling = NegativeSampling()
    learning_rate: LearningRate = 3e-4
    objective_learning_rate: LearningRate = 1e-2
    """Of what terms name under `learn`, on the same schedule: few numbers, which must get somewhere in one epoch."""
    find_learning_rate: bool = False
    """True: a range test on the first lists suggests `learning_rate`, which is then not read."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: TrainingDtype = "fp32"
    tokens_per_micro_batch: Annotated[int, Field(ge=64)] | None = None
    """Padded tokens that go through the encoder at once; texts of a step are sorted by length first. Null: 2,048 on a
    CPU, whose caches then hold the activations, 65,536 on a GPU."""
    gradient_cache: bool = False
    """Memory of one micro-batch instead of the whole step, for a third more computation; the same gradients."""
    momentum: MomentumSpec | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Average the weights over steps, with this decay, and evaluate and export the average."""
    pacing: PacingSpec | None = None
    """From easy lists to hard ones. Those passed over make fewer steps than planned, so that the rate ends above 0."""
    workers: WorkersSpec | None = None
    """Processes that share a step's texts; null trains in the job's own process."""
    metrics: MetricsSpec = MetricsSpec()
    checkpoint_every_steps: Positive = 50
    keep_checkpoints: Positive = 2

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        names = [term.name for term in self.objective]
        if len(set(names)) != len(names):
            raise ValueError(f"objective names a term twice: {names}; its curve could not be told apart")
        if not any(term.weight > 0 for term in self.objective):
            raise ValueError("objective needs at least one term with a weight above 0")
        if self.momentum and "nspt" in names:
            raise ValueError("momentum: nspt compares every document with the previous student's, and a queue has none")
        if self.positives_per_query >= self.candidates_per_query:
            raise ValueError(
                f"positives_per_query: {self.positives_per_query} leaves no room for a negative among "
                f"candidates_per_query ({self.candidates_per_query})"
            )
        return self
