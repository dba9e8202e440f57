"""The rounds of an adversarial job as a table: for its report and for a terminal.

Enters: the figures of a round as JSON. Leaves: titles and cells, as text.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["ROUND_COLUMNS", "round_cells"]

_FIELDS: dict[str, tuple[str, ...]] = {
    "student nDCG@10": ("student", "nDCG@10"),
    "student RR@10": ("student", "RR@10"),
    "student R@5": ("student", "R@5"),
    "ranker nDCG@10": ("ranker", "nDCG@10"),
    "entropy": ("entropy",),
    "overlap": ("list_overlap",),
    "dev overlap": ("dev_overlap",),
    "student margin": ("hardness", "student_margin"),
    "ranker margin": ("hardness", "ranker_margin"),
    "ranker fooled": ("hardness", "ranker_fooled"),
}
ROUND_COLUMNS = ("round", *_FIELDS)


def round_cells(figures: Mapping[str, Any]) -> list[str]:
    """The cells of one round, in the order of `ROUND_COLUMNS`; what was not measured is a dash."""
    return [
        "before" if figures["round"] < 0 else str(figures["round"]),
        *(_cell(figures, path) for path in _FIELDS.values()),
    ]


def _cell(figures: Mapping[str, Any], path: tuple[str, ...]) -> str:
    value: Any = figures
    for name in path:
        value = None if value is None else value[name]
    return "–" if value is None else f"{value:.3f}"
