"""What a job's spec says to the training loop and to the batches of its student.

Enters: a `DistillationSpec`. Leaves: the loop's settings and the rule of positives, the same for rounds and control.
"""

from pipelines.ranked.filling import chunk_count
from pipelines.ranked.positives import PositiveRule
from pipelines.spec import DistillationSpec
from pipelines.training.loop import LoopSettings

__all__ = ["loop_settings", "positive_rule"]


def loop_settings(spec: DistillationSpec, num_queries: int) -> LoopSettings:
    """One round's optimisation settings: `epochs` passes over `num_queries`."""
    training = spec.training
    return LoopSettings(
        total_steps=chunk_count(training.epochs * num_queries, training.queries_per_step),
        learning_rate=training.learning_rate,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        checkpoint_every_steps=training.checkpoint_every_steps,
        learning_rates={"learned": training.objective_learning_rate},
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
