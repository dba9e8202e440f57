"""What an export says about itself: `manifest.json` for programs, `README.md` for people and for dataset loaders.

Enters: an `ExportReport`. Leaves: two files beside `data/`. The README opens with the header by which a Hugging Face
loader finds the tables, so the folder itself can be given to `load_dataset`. Both stay out of `data/`: some trainers
read every JSON file of a folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.ranked.exports.format import Format, TableSpec

__all__ = ["MANIFEST", "is_export", "write_card"]

MANIFEST = "manifest.json"
_MADE_BY = "dualdistill lists export"


def write_card(
    folder: Path, *, format_: Format, tables: tuple[TableSpec, ...], facts: Mapping[str, Any], shown_as: str
) -> None:
    """Write both files.

    Args:
        folder: of the export.
        format_: what it is.
        tables: its data files.
        facts: JSON-ready; the manifest's content.
        shown_as: what the README calls the folder.
    """
    manifest = {"made_by": _MADE_BY, "format": format_.name, **facts}
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(format_, tables, manifest, shown_as), encoding="utf-8")


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, by its manifest: nothing else may be overwritten."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("made_by") == _MADE_BY


def _readme(format_: Format, tables: tuple[TableSpec, ...], manifest: Mapping[str, Any], shown_as: str) -> str:
    contract, counts = manifest["contract"], manifest["counts"]
    lines = [
        *_header(tables),
        f"# Ranked lists of {contract['model_id']}, as {format_.name}",
        "",
        f"{format_.summary[0].upper()}{format_.summary[1:]}.",
        "Scores are the teacher's raw logits: no sigmoid, no softmax, no scale; a temperature belongs where you train.",
        "",
        f"- job `{manifest['job_id']}`, round {manifest['round']}",
        f"- score contract `{manifest['contract_fingerprint']}`, data set `{manifest['dataset_fingerprint']}`",
        f"- scored by {_listed('version', manifest['weights_versions'])} of the teacher's weights",
        *([f"- candidates found by {_listed('student', manifest['miners'])}"] if manifest["miners"] else []),
        f"- {counts['lists_exported']:,} of {counts['lists']:,} lists",
        f"- {counts['positives']:,} positives, {counts['negatives']:,} negatives",
        *(f"- `data/{table.file_name}`: {counts['rows'][table.name]:,} rows" for table in tables),
        *(f"- left out: {_phrase(kind, why, number)}" for kind, why, number in _left_out(manifest)),
        "",
        "```",
        format_.usage.replace("{folder}", shown_as),
        "```",
        "",
        f"Everything about it that a program may want is in `{MANIFEST}`.",
    ]
    return "\n".join(lines) + "\n"


def _listed(what: str, found: Mapping[str, int]) -> str:
    return f"{what} " + ", ".join(f"{name[:16]} ({number:,} lists)" for name, number in found.items())


def _header(tables: tuple[TableSpec, ...]) -> list[str]:
    if all(table.kind == "trec" for table in tables):
        return []
    several = len(tables) > 1
    configs = [
        line
        for table in tables
        for line in (
            f"- config_name: {table.name if several else 'default'}",
            f"  data_files: data/{table.file_name}",
        )
    ]
    return ["---", "configs:", *configs, "---"]


def _left_out(manifest: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    return [(kind, why, number) for kind, reasons in manifest["left_out"].items() for why, number in reasons.items()]


def _phrase(kind: str, why: str, number: int) -> str:
    return f"{number:,} {kind if number != 1 else kind.removesuffix('s')}, {why}"
