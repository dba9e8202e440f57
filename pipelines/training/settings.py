"""What a job's spec says to the training loop and to the batches of its student.

Enters: a `DistillationSpec`. Leaves: the settings of the loop and of encoding, and the rule of positives, the same for
rounds and control.
"""

from pipelines.devices import resolve_dtype
from pipelines.ranked.filling import chunk_count
from pipelines.ranked.positives import PositiveRule
from pipelines.spec import DistillationSpec, TrainingSpec
from pipelines.training.encoding import EncodingSettings
from pipelines.training.optimizer import LoopSettings

__all__ = ["encoding_settings", "loop_settings", "positive_rule", "steps_of_round", "student_checkpoints"]


def steps_of_round(spec: DistillationSpec, num_queries: int) -> int:
    """Steps that a round of `num_queries` is planned to have: `epochs` passes over them."""
    return chunk_count(spec.training.epochs * num_queries, spec.training.queries_per_step)


def student_checkpoints(spec: DistillationSpec, round_number: int) -> str:
    """Folder of the student's checkpoints in the job's own; adversarial rounds share one, as they do a schedule."""
    return "checkpoints/student" if spec.rounds.mode == "adversarial" else f"checkpoints/round-{round_number}"


def loop_settings(
    spec: DistillationSpec, num_queries: int, *, round_number: int = 0, steps_before: int = 0
) -> LoopSettings:
    """One round's optimisation settings.

    Args:
        spec: of the job.
        num_queries: of the round.
        round_number: of the round.
        steps_before: of earlier rounds; adversarial rounds are parts of one run, others begin at step 0.
    """
    training, steps = spec.training, steps_of_round(spec, num_queries)
    adversarial = spec.rounds.mode == "adversarial"
    return LoopSettings(
        total_steps=spec.rounds.count * steps if adversarial else steps,
        begins_at=steps_before if adversarial else 0,
        stops_after=steps_before + steps if adversarial else None,
        learning_rate=training.learning_rate,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        checkpoint_every_steps=training.checkpoint_every_steps,
        learning_rates={"learned": training.objective_learning_rate},
        seed=spec.seed + round_number,
    )


def encoding_settings(training: TrainingSpec, *, device_type: str) -> EncodingSettings:
    """How texts go through an encoder on `cuda` or `cpu`."""
    return EncodingSettings(
        dtype=resolve_dtype(training.dtype, device_type=device_type),
        tokens_per_micro_batch=training.tokens_per_micro_batch or (65536 if device_type == "cuda" else 2048),
        gradient_cache=training.gradient_cache,
    )


def positive_rule(spec: DistillationSpec) -> PositiveRule:
    """Labels if the student may see them, else the teacher if it is sure."""
    unlabelled = spec.dataset.unlabelled
    return PositiveRule(
        use_labels=spec.training.use_labels,
        teacher_top=unlabelled.positive == "teacher_top",
        min_confidence=unlabelled.min_confidence,
        per_query=spec.training.positives_per_query,
    )
