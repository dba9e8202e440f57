"""Heads and prefixes of a student: what cannot be meant is refused before a job runs, with the field and the value."""

import json
from typing import Any

import pytest
from tiny import spec_data

from pipelines.spec import DualHeadSpec, SpecError, parse_spec


def with_student(**changes: Any) -> dict[str, Any]:
    return spec_data(student={"model": {"id": "encoder"}, **changes})


def problems(data: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    return dict(caught.value.problems)


def test_a_student_has_no_heads_and_no_prefixes_unless_asked() -> None:
    student = parse_spec(spec_data()).student
    assert student.heads is None
    assert student.matryoshka is None


def test_an_empty_section_is_both_heads_served_in_equal_parts() -> None:
    spec = parse_spec(with_student(heads={}))
    assert spec.student.heads == DualHeadSpec(dimension=None, serve="interpolated", alpha=0.5, beta=1.0)


def test_heads_and_prefixes_survive_json() -> None:
    # Jobs are stored and posted as JSON, where a tuple is a list.
    spec = parse_spec(
        with_student(
            heads={"serve": "contrastive", "dimension": 24, "alpha": 0.3},
            matryoshka={"dimensions": [16, 4], "dimensions_per_step": 1},
        )
    )
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    assert spec.student.matryoshka is not None
    assert spec.student.matryoshka.dimensions == (16, 4)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("heads.dimension", 0, "0"),
        ("heads.serve", "distillation", "'distillation'"),
        ("heads.alpha", 0, "0"),
        ("heads.alpha", 1, "1"),
        ("heads.beta", 0, "0"),
        ("heads.beta", float("inf"), "inf"),
        ("heads.gamma", 1, "unknown field"),
        ("matryoshka.dimensions", [], "[]"),
        ("matryoshka.dimensions", [4, 16], "[4, 16]"),
        ("matryoshka.dimensions", [16, 16], "[16, 16]"),
        ("matryoshka.invariance_weight", -1, "-1"),
        ("matryoshka.dimensions_per_step", 3, "3 cannot be drawn from 2"),
    ],
)
def test_a_bad_value_is_shown_beside_its_path(field: str, value: Any, shown: str) -> None:
    section, name = field.split(".")
    complete = {"matryoshka": {"dimensions": [16, 4]}, "heads": {}}
    found = problems(with_student(**{section: complete[section] | {name: value}}))
    assert list(found) == [f"student.{field}"]
    assert shown in found[f"student.{field}"]


def test_a_prefix_of_length_zero_is_refused_at_its_place() -> None:
    assert list(problems(with_student(matryoshka={"dimensions": [4, 0]}))) == ["student.matryoshka.dimensions.1"]


def test_prefixes_of_an_interpolated_vector_are_refused() -> None:
    """The concatenated vector begins with the contrastive head: its prefixes would hardly know the other."""
    found = problems(with_student(heads={}, matryoshka={"dimensions": [16]}))
    assert list(found) == ["student"]
    assert "set heads.serve to 'contrastive'" in found["student"]


@pytest.mark.parametrize("longest", [24, 32])
def test_a_prefix_that_is_no_shorter_than_the_head_is_refused(longest: int) -> None:
    found = problems(
        with_student(heads={"serve": "contrastive", "dimension": 24}, matryoshka={"dimensions": [longest]})
    )
    assert found == {"student": f"matryoshka.dimensions has {longest}, which is not below heads.dimension 24"}


@pytest.mark.parametrize(
    "section", [{"heads": {"dimension": 8}}, {"projection": 8}, {"matryoshka": {"dimensions": [16]}}]
)
def test_a_fixed_encoder_has_nothing_to_learn(section: dict[str, Any]) -> None:
    # Its heads would stay where they began: candidates would come from a random projection.
    encoder = {"model": {"id": "encoder"}, **section}
    data = spec_data(candidates={"dense": {"top_k": 4, "encoder": encoder}})
    assert list(problems(data)) == ["candidates.dense.encoder"]
