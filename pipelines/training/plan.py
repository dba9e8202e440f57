"""What a training run is going to cost, said before it starts.

Enters: the first batch, and the encoder it will go through. Leaves: texts and tokens per step, steps, and an expected
time from a short forward and backward pass of the batch's own texts. 64 negatives a query are 4,000 texts a step:
whoever sees that number beforehand is not surprised by the hours.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.devices import torch_dtype
from pipelines.packing import pack_by_tokens, padding_waste
from pipelines.student.model import DualEncoder
from pipelines.training.encoding import EncodingSettings, StepTexts

__all__ = ["TrainingPlan", "plan_training"]

_PROBE_TOKENS = 2048


@dataclass(frozen=True)
class TrainingPlan:
    """A step as the first batch has it, and all steps.

    Attributes:
        steps: optimizer steps of the round.
        queries_per_step: lists.
        texts_per_step: distinct queries and documents that are encoded.
        tokens_per_step: of them, without padding.
        padding_share: of what goes through the encoder, 0 to 1.
        micro_batches_per_step: forward passes.
        seconds_per_step: expected, on this worker and device; waiting for the teacher is not in it.
        expected_seconds: of all steps.
    """

    steps: int
    queries_per_step: int
    texts_per_step: int
    tokens_per_step: int
    padding_share: float
    micro_batches_per_step: int
    seconds_per_step: float
    expected_seconds: float

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.steps} steps of {self.queries_per_step} queries: {self.texts_per_step} texts and "
            f"{self.tokens_per_step} tokens a step, about {self.seconds_per_step:.2g} s each, "
            f"{_duration(self.expected_seconds)} in all if no list is waited for"
        )


def plan_training(
    student: DualEncoder, texts: StepTexts, settings: EncodingSettings, *, queries: int, steps: int, world: int
) -> TrainingPlan:
    """Measure a small part of the first batch; weights, gradients and draws are as before.

    Args:
        student: in any mode.
        texts: of the first batch.
        settings: how they will be encoded.
        queries: lists of that batch.
        steps: optimizer steps of the round.
        world: workers that share the texts.
    """
    lengths = texts.tokens.lengths
    packed = pack_by_tokens(lengths, settings.tokens_per_micro_batch)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in packed)
    per_token = _seconds_per_token(student, texts, settings.dtype)
    # Activations that are not kept are computed once more: 4 passes of forward's cost instead of 3.
    seconds = per_token * padded / world * (4 / 3 if settings.gradient_cache else 1)
    return TrainingPlan(
        steps=steps,
        queries_per_step=queries,
        texts_per_step=len(texts),
        tokens_per_step=int(lengths.sum()),
        padding_share=padding_waste(lengths, packed),
        micro_batches_per_step=len(packed),
        seconds_per_step=seconds,
        expected_seconds=seconds * steps,
    )


def _seconds_per_token(student: DualEncoder, texts: StepTexts, dtype: str) -> float:
    """Of a forward and backward pass over some of the texts, the second time."""
    lengths = texts.tokens.lengths
    middle = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    rows = np.full(max(1, _PROBE_TOKENS // int(lengths[middle])), middle, dtype=np.int64)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    took = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        with (
            torch.random.fork_rng(),
            torch.autocast(student.device.type, dtype=torch_dtype(dtype), enabled=dtype != "fp32"),
        ):
            torch.autograd.grad(student.pooled(texts.tokens, rows).sum(), trainable, allow_unused=True)
        if student.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - begin
    return took / (len(rows) * int(lengths[middle]))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
