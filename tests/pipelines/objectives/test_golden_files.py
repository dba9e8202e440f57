"""No golden file lies unused, and none that is used has lost its provenance.

Why: a file of official numbers that no test reads proves nothing, and looks as if it did.
"""

import json
import re
from pathlib import Path

import pytest
from golden_cases import FOLDER

TESTS = Path(__file__).parents[2]
FILES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "trajectories")
SOURCES = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py") if path != Path(__file__)}


def test_the_official_numbers_are_all_here():
    assert len(FILES) == 41


@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_is_read_by_a_test_and_its_source_is_stated(name):
    reading = rf"""(cases|golden|load)\w*\(\s*["']{name}["']|["'/]{name}\.json["']"""
    readers = [path.name for path, text in SOURCES.items() if re.search(reading, text)]
    assert readers, f"no test reads {name}.json"
    assert f"| {name}.json |" in (FOLDER / "README.md").read_text(encoding="utf-8")
    source = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert source["provenance"] in {"official", "third_party", "derived", "unverified"}
    assert source["cases"]
