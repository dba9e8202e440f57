"""docs/methods.md says what the code does: generated from the registry, and this test notices when it is not.

Why: users choose a loss by that page. A default or an equation that has changed since would mislead them.
"""

import dataclasses
from pathlib import Path

import pytest

from pipelines.errors import ObjectiveError
from pipelines.objectives.methods_page import methods_page, objective_page_entry
from pipelines.objectives.registry import OBJECTIVES, TENSORS

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


def test_the_page_is_what_the_registry_says():
    assert PAGE.read_text(encoding="utf-8") == methods_page(), (
        "run: .venv/bin/python -m pipelines.objectives.methods_page > docs/methods.md"
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_has_a_row_of_its_own_with_every_default(name):
    (row,) = [line for line in methods_page().splitlines() if line.startswith(f"| **`{name}`**")]
    for parameter in OBJECTIVES[name].parameters:
        assert f"`{parameter}: " in row
    assert row.replace("\\|", "").count("|") == 7, "six cells"


def test_each_tensor_is_explained():
    assert all(f"| `{name}` |" in methods_page() for name in TENSORS)


def test_an_objective_without_its_documentation_is_named():
    undocumented = dataclasses.replace(OBJECTIVES["cprd"], function=test_each_tensor_is_explained)
    with pytest.raises(ObjectiveError, match=r"test_each_tensor_is_explained: .* lacks .*Source"):
        objective_page_entry(undocumented)
