"""Held-out queries during training: how good the student is by now, whether going on helps, which weights were best.

Enters: a measure (dev nDCG@10). Leaves: when to take it, when to stop, and `Best`, which checkpoints keep.
"""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Best", "HeldOutCheck"]


@dataclass(frozen=True)
class Best:
    """The step after which the measure was highest, the first of equals, and its value."""

    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class HeldOutCheck:
    """A measure and its rhythm.

    Attributes:
        measure: of the model as it is now, higher is better; the model is in eval mode.
        every_steps: how often.
        patience: measures in a row that may fail to improve before training stops; None never stops it.
    """

    measure: Callable[[], float]
    every_steps: int
    patience: int | None

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether to measure after this step."""
        return last or step % self.every_steps == 0

    def is_over(self, step: int, best: Best | None) -> bool:
        """Whether as many measures as patience allows have passed since the best one."""
        if self.patience is None or best is None:
            return False
        return step // self.every_steps - best.step // self.every_steps >= self.patience
