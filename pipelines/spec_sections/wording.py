"""What a section refused, in the words of a YAML file: the path of each field, and what is wrong with its value.

Enters: pydantic's error and the mapping that was validated. Leaves: problems to show.
"""

import difflib
import re
from typing import Any

from pydantic import ValidationError

__all__ = ["problems_of", "short"]


def problems_of(error: ValidationError, data: Any) -> list[tuple[str, str]]:
    """Pairs of a dotted path and what is wrong there; messages of our own validators may name the field themselves."""
    found: list[tuple[str, str]] = []
    for item in error.errors(include_url=False):
        path = ".".join(_located(item["loc"], data))
        if item["type"] == "value_error":
            for message in str(item["ctx"]["error"]).splitlines():
                field, _, detail = message.partition(": ")
                known = detail and " " not in field
                found.append((f"{path}.{field}".lstrip("."), detail) if known else (path or "spec", message))
            continue
        found.append((path or "spec", _detail(item)))
    return found


def _detail(item: Any) -> str:
    """What is wrong with one value, in the words of a YAML file and not of the validating library."""
    match item["type"]:
        case "missing":
            return str(item["msg"])
        case "extra_forbidden":
            return "unknown field"
        case "union_tag_invalid":
            known = re.findall(r"'(\w+)'", item["ctx"]["expected_tags"])
            close = difflib.get_close_matches(str(item["ctx"]["tag"]), known, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            return f"unknown name {item['ctx']['tag']!r}; {meant}"
        case "union_tag_not_found":
            return f"Field required: name, got {short(item['input'])}"
        case "tuple_type":
            return f"should be a list, got {short(item['input'])}"
    return f"{item['msg']}, got {short(item['input'])}"


def _located(loc: tuple[str | int, ...], data: Any) -> list[str]:
    """The parts of an error's place that exist in the document.

    A union's tag (an objective's name) does not, nor do fields of a section that is given as a number.
    """
    parts: list[str] = []
    node = data
    for part in loc:
        if isinstance(node, dict) and part not in node and node.get("name") == part:
            continue
        if node is not None and not isinstance(node, dict | list):
            break
        parts.append(str(part))
        if isinstance(node, dict):
            node = node.get(part)
        else:
            node = node[part] if isinstance(node, list) and isinstance(part, int) and part < len(node) else None
    return parts


def short(value: Any) -> str:
    """A value as Python writes it, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
