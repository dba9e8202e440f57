"""Journal: how the science tells whoever runs it what is happening, and asks whether to go on.

Enters: phases, progress numbers, events. Leaves: nothing here; a service writes them to its store, the CLI to the
terminal. It is a protocol, so `pipelines` needs no database to report to one.
"""

from typing import Any, Protocol

__all__ = ["Journal"]


class Journal(Protocol):
    """Where a run reports to. Must be safe to call from the scoring thread and the training thread at once."""

    def phase(self, name: str) -> None:
        """The run entered a phase.

        They are mining, teacher_training, tokenizing, scoring_and_training, evaluating, publishing.
        """
        ...

    def progress(self, **numbers: float | str) -> None:
        """Newest values of some counters; merged into what was reported before."""
        ...

    def event(self, type_: str, message: str, **data: Any) -> None:
        """Something worth remembering happened; `type_` is a stable dotted word."""
        ...

    def check_cancelled(self) -> None:
        """Raise `pipelines.errors.Cancelled` if the run should stop; called once per batch or request."""
        ...
