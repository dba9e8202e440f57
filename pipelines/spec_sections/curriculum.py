"""Sections about what the student meets when: pacing, and how a cut student starts.

Enters: parts of a mapping. Leaves: two frozen sections. Each is optional in a job; without it every list takes part
from the first step, and a student cut from a longer encoder starts as it was cut.
"""

from typing import Annotated

from pydantic import Field

from pipelines.spec_sections.base import LearningRate, Positive, Section

__all__ = ["PacingSpec", "WarmStartSpec"]


class PacingSpec(Section):
    """From easy to hard: a list takes part once its difficulty, 0 to 1, is below a limit that rises to 1."""

    start: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The limit at the beginning; 1 lets everything take part at once."""
    full_at: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the run after which everything takes part."""
    loss_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the student's own loss in the difficulty; the rest is how unsure the teacher is. No say in the first epoch."""


class WarmStartSpec(Section):
    """Before the first round a student of few layers follows the hidden states of the encoder it was cut from."""

    steps: Positive = 200
    texts_per_step: Positive = 64
    learning_rate: LearningRate = 3e-4
