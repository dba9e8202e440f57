"""docs/methods.md from the registry: one row per objective, so that the page cannot say what the code does not do.

Enters: the registry and the module docstrings of the objectives. Leaves: Markdown. A test compares it with the file.

    python -m pipelines.objectives.methods_page > docs/methods.md
"""

import inspect
import re
import sys
from collections.abc import Iterable

from pipelines.errors import ObjectiveError
from pipelines.objectives.registry import OBJECTIVES, TENSORS, ObjectiveInfo, term_parameters

__all__ = ["methods_page", "objective_page_entry"]

_SECTIONS = ("Source", "Use when", "Reported", "Edges")

_HEAD = """# Methods

Every objective that a job may name under `training.objective`, generated from the registry
(`python -m pipelines.objectives.methods_page > docs/methods.md`; a test holds this page to the code). An objective is a
list of `{name, weight, learn, **parameters}`; terms are added with their weights, and weight 0 is computed and shown.
Where an objective has a `temperature`, it divides student similarities: 0.05 suits cosines, 1 raw dot products.
What a parameter means, and what else it may be, is in the docstring of the objective's module,
`pipelines/objectives/<name>.py`; edges are there, too. In `reads`, `[x]` is optional; `view` is the head it trains if
`student.heads` makes two. Values are of different size (sums over a list, means, products with a large scale): look at
the learning curve's `loss.<name>` before trusting a weight of 1.
`learn: [temperature]` trains a parameter with the student where the last column says so, at
`training.objective_learning_rate`. Where a paper and its official code differ, the
paper's form is the default and the code's a named option; the module's docstring says how they differ.
"""

_TABLE = """
| objective | equation | reads | use when | reported by the paper | parameters and defaults |
|---|---|---|---|---|---|
"""


def methods_page() -> str:
    """The whole page."""
    lists = [name for name, info in OBJECTIVES.items() if info.term.LEARNS_FROM == "lists"]
    positives = [name for name in OBJECTIVES if name not in lists]
    tensors = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in TENSORS.items())
    return (
        f"{_HEAD}\n## Objectives that learn from ranked lists, with or without a positive\n{_TABLE}{_rows(lists)}\n"
        f"\n## Objectives that need a positive\n\nQueries without one (no label, and no teacher confident enough) add "
        f"nothing to these.\n{_TABLE}{_rows(positives)}\n"
        "\n## Tensors\n\nWhat a step offers; an objective asks by parameter name.\n\n"
        f"| name | shape and meaning |\n|---|---|\n{tensors}\n"
    )


def objective_page_entry(info: ObjectiveInfo) -> dict[str, str]:
    """`title`, `equation`, `Source`, `Use when`, `Reported` and `Edges` of an objective's module docstring.

    Raises:
        ObjectiveError: the docstring lacks one of them.
    """
    module = inspect.getmodule(info.function)
    paragraphs = inspect.cleandoc((module and module.__doc__) or "").split("\n\n")
    entry = {"title": _joined(paragraphs[0]), "equation": ""}
    for paragraph in paragraphs[1:]:
        heading, colon, rest = paragraph.partition(":")
        if paragraph.startswith("    ") and not entry["equation"]:
            entry["equation"] = inspect.cleandoc("\n" + paragraph)
        elif colon and heading in _SECTIONS:
            entry[heading] = _joined(rest)
    missing = [part for part in ("title", "equation", *_SECTIONS) if not entry.get(part)]
    if missing:
        raise ObjectiveError(f"{info.function.__name__}: its module docstring lacks {', '.join(missing)}")
    return entry


def _rows(names: Iterable[str]) -> str:
    return "\n".join(_row(name, OBJECTIVES[name]) for name in names)


def _row(name: str, info: ObjectiveInfo) -> str:
    entry = objective_page_entry(info)
    equation = "<br>".join(_code(line) for line in entry["equation"].splitlines() if line.strip())
    asked = ", ".join(
        f"`{tensor}`" if tensor in info.required_tensors else f"`[{tensor}]`"
        for tensor in info.tensors
        if tensor in TENSORS
    )
    given = term_parameters(info.term(name=name))
    parameters = ", ".join(f"`{key}: {_yaml(value)}`" for key, value in given.items()) or "none"
    learnable = f"; learnable: {', '.join(f'`{key}`' for key in info.term.LEARNABLE)}" if info.term.LEARNABLE else ""
    siblings = [
        other for other in OBJECTIVES.values() if inspect.getmodule(other.function) is inspect.getmodule(info.function)
    ]
    own = f"<br>{_joined((inspect.getdoc(info.function) or '').splitlines()[0])}" if len(siblings) > 1 else ""
    asked += f"<br>view: {info.term.VIEW}"
    cells = (
        f"**`{name}`** {entry['title']}{own}<br>{entry['Source']}",
        equation,
        asked,
        entry["Use when"],
        entry["Reported"],
        parameters + learnable,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _code(line: str) -> str:
    """One line of an equation: wide gaps part what a table cell would run together, others only align."""
    first, *others = re.split(r" {4,}", line.strip())
    parted = first
    for part in others:
        separate = "=" in parted and parted[-1] not in ",:" and not part.startswith(("=", "of "))
        parted += f"{'; ' if separate else ' '}{part}"
    return f"`{re.sub(r' +', ' ', parted)}`"


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


if __name__ == "__main__":
    sys.stdout.write(methods_page())
