"""What README shows of a job is a job.

Why: the first thing a user copies must not be refused.
"""

import re
from pathlib import Path

import pytest
import yaml
from tiny import tiny_spec

from pipelines.objectives.registry import OBJECTIVES

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)]


def test_the_readme_shows_an_objective():
    assert any("training" in snippet for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_what_the_readme_shows_is_accepted(snippet):
    spec = tiny_spec(**snippet)
    for section, fields in snippet.items():
        if isinstance(fields, dict):
            assert set(fields) <= set(type(getattr(spec, section)).model_fields)
        else:
            assert (spec.rounds.count if section == "rounds" else getattr(spec, section)) == fields


def test_the_readme_counts_the_objectives():
    assert f"weighted terms out of {len(OBJECTIVES)}:" in README
