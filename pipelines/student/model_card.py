"""README.md of an exported student: what it is, what made it, what it was measured to do, how to load it.

Enters: plain facts, already put into words and numbers. Leaves: Markdown with the YAML front matter that model hubs
read. Nothing here looks anything up, and nothing is claimed that was not handed in: a part without facts says so or is
left out. Texts from outside (names, prompts, paths) are escaped, so that a data set's name cannot write a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["CardFacts", "Table", "model_card"]


@dataclass(frozen=True)
class Table:
    """Numbers to show: a heading per column, and rows of as many cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says.

    Attributes:
        name: the job's, as title.
        base_model: the checkpoint that the student began as.
        base_model_on_hub: whether that is a hub id; only then it goes into the front matter, which hubs follow.
        license: as the hub names it; None: not given.
        form: name -> value: layers, pooling, dimensions and the like.
        data: name -> value: data set, documents, queries per split.
        teacher: name -> value, with the fingerprint of its score contract.
        objective: term -> its weight and settings.
        training: settings -> values, as the job wrote them.
        summary: sentences about the result; empty when nothing was measured.
        results: systems x measures; None when nothing was measured.
        precisions: searches x measures and losses; None when none was asked for or measured.
        rescored_from: candidates per result of the rescored binary search.
        matryoshka: prefixes that are usable, longest first; empty: none.
        formats: runtimes that the encoder was also exported for.
        has_int8_ranges: whether `int8_ranges.npy` lies beside the card.
        normalized: whether embeddings are of unit length.
        versions: package -> version.
    """

    name: str
    base_model: str
    base_model_on_hub: bool
    license: str | None
    form: Mapping[str, str]
    data: Mapping[str, str]
    teacher: Mapping[str, str]
    objective: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    summary: Sequence[str]
    results: Table | None
    precisions: Table | None
    rescored_from: int
    matryoshka: Sequence[int]
    formats: Sequence[str]
    has_int8_ranges: bool
    normalized: bool
    versions: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The whole README.md."""
    environment = Environment(
        loader=PackageLoader("pipelines.student", "."),
        autoescape=False,  # noqa: S701 - Markdown; texts from outside go through `text` and `code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "code": _code}
    return environment.get_template("model_card.md.j2").render(
        facts=facts,
        front_matter=yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True),
        objective=yaml.safe_dump({name: dict(term) for name, term in facts.objective.items()}, sort_keys=False),
        training=yaml.safe_dump(dict(facts.training), sort_keys=False),
    )


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    matter: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "dualdistill", "distillation"],
    }
    if facts.license:
        matter["license"] = facts.license
    if facts.base_model_on_hub:
        matter["base_model"] = facts.base_model
    return matter | {"tags": [*matter["tags"], *facts.formats]}


def _text(value: object) -> str:
    """A value inside a line or a table cell."""
    plain = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*_[]|":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _code(value: object) -> str:
    """A value as inline code, in a table cell too."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '/')}`"
