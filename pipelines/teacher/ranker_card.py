"""The model card of a ranker that learned in adversarial rounds: what it is, how to call it, what it became better at.

Enters: plain facts. Leaves: the text of its `README.md`, with the metadata that a hub reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

__all__ = ["RankerCard", "ranker_card"]


@dataclass(frozen=True, kw_only=True)
class RankerCard:
    """What the card says."""

    name: str
    license: str | None
    base: str
    """What the ranker was before its rounds."""
    facts: Mapping[str, str]
    before: Mapping[str, float] = field(default_factory=dict)
    """Measure -> mean over test queries, re-ranking the first stage; empty without a test split, like `after`."""
    after: Mapping[str, float] = field(default_factory=dict)
    round_titles: Sequence[str] = ()
    rounds: Sequence[Sequence[str]] = ()
    """Rows of the table round by round."""


def ranker_card(card: RankerCard) -> str:
    """The card as Markdown."""
    metadata = {
        **({"license": card.license} if card.license else {}),
        "library_name": "sentence-transformers",
        "pipeline_tag": "text-ranking",
        "tags": ["cross-encoder", "reranker", "ar2", "dualdistill"],
    }
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        "",
        f"# {card.name}: ranker",
        "",
        f"A cross-encoder that began as {card.base} and learned from the negatives that its own student found.",
        "(AR2, arXiv 2110.03611.) Scores are raw logits: higher is better, no scale is meant.",
        "",
        "```python",
        "from sentence_transformers import CrossEncoder",
        "",
        'CrossEncoder("path/to/this/folder").rank("a query", ["a passage", "another one"])',
        "```",
        "",
        *(f"- {name}: {value}" for name, value in card.facts.items()),
    ]
    if card.after:
        lines += ["", "## Re-ranking the first stage of the test queries", ""]
        lines += _table(
            ["", *card.after],
            [
                [title, *(f"{values[name]:.3f}" for name in card.after)]
                for title, values in (("before the rounds", card.before), ("after", card.after))
            ],
        )
    if card.rounds:
        lines += ["", "## Round by round", "", *_table(card.round_titles, card.rounds)]
    return "\n".join(lines) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
