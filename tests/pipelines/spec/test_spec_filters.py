"""Filters are off until asked for, and a setting that cannot do what it says is refused with its name and value."""

import json
from typing import Any

import pytest
from pydantic import ValidationError
from tiny import spec_data, tiny_spec

from pipelines.spec import FilterSpec, SpecError, load_filters, parse_spec


def problems(**settings: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(spec_data(training={"filters": settings}))
    return dict(caught.value.problems)


def test_a_job_without_filters_has_none() -> None:
    assert tiny_spec().training.filters == FilterSpec()
    assert not FilterSpec().measures_from_positive


def test_all_settings_together() -> None:
    settings = {
        "absolute_margin": 0.5,
        "percent_of_positive": 0.95,
        "margin_from": "highest",
        "above_positive": "relabel",
        "rank_window": {"by": "bm25", "first": 2, "last": 90},
        "min_logit": -3,
        "max_logit": 8,
        "iqr_whisker": 1.5,
        "same_text": "drop",
        "tie_margin": 0.01,
        "min_candidates": 4,
    }
    spec = FilterSpec.model_validate(settings)
    assert set(settings) == set(FilterSpec.model_fields) - {"relative_margin"}
    assert spec.measures_from_positive
    assert FilterSpec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert hash(spec) == hash(spec.model_copy())


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        ({"relative_margn": 0.1}, "relative_margn", ["unknown field"]),
        ({"relative_margin": -0.1}, "relative_margin", ["-0.1"]),
        ({"percent_of_positive": 95}, "percent_of_positive", ["95"]),
        ({"absolute_margin": float("nan")}, "absolute_margin", ["nan"]),
        ({"min_candidates": 1}, "min_candidates", ["1"]),
        ({"above_positive": "remove"}, "above_positive", ["'remove'"]),
        ({"rank_window": {"first": 0}}, "rank_window.first", ["0"]),
        ({"rank_window": {}}, "rank_window.first", ["1", "every rank"]),
        ({"rank_window": {"by": "dense", "first": 9, "last": 3}}, "rank_window.first", ["9", "last (3)"]),
        ({"percent_of_positive": 0.9, "relative_margin": 0.25}, "percent_of_positive", ["0.9", "0.1", "0.25"]),
        ({"min_logit": 2, "max_logit": 1}, "min_logit", ["2", "max_logit (1)"]),
        ({"margin_from": "highest"}, "margin_from", ["'highest'"]),
        ({"margin_from": "highest", "tie_margin": 1}, "margin_from", ["'highest'"]),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_value(settings: Any, path: str, words: list[str]) -> None:
    ((field, detail),) = problems(**settings).items()
    assert field == f"training.filters.{path}"
    assert all(word in detail for word in words)


def test_what_a_source_found_is_a_window_without_bounds() -> None:
    assert tiny_spec(training={"filters": {"rank_window": {"by": "bm25"}}}).training.filters.rank_window


def test_filters_are_frozen() -> None:
    with pytest.raises(ValidationError):
        FilterSpec().tie_margin = 1.0


@pytest.mark.parametrize(
    "text", ["tie_margin: 1", "filters: {tie_margin: 1}", "name: job\ntraining: {epochs: 2, filters: {tie_margin: 1}}"]
)
def test_a_file_holds_filters_alone_or_is_a_job(tmp_path: Any, text: str) -> None:
    file = tmp_path / "filters.yaml"
    file.write_text(text, encoding="utf-8")
    assert load_filters(file) == FilterSpec(tie_margin=1)
    overridden = load_filters(file, {"tie_margin": "null", "rank_window.first": "11"})
    assert overridden == FilterSpec.model_validate({"rank_window": {"first": 11}})


def test_a_job_file_without_filters_has_none(tmp_path: Any) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: job\ntraining: {epochs: 2}\n", encoding="utf-8")
    assert load_filters(file) == FilterSpec()
    assert load_filters(None, {"min_candidates": "3"}) == FilterSpec(min_candidates=3)


@pytest.mark.parametrize("text", ["[1, 2]", "filters: 3", "training: 3", "filtres: {tie_margin: 1}"])
def test_a_file_of_something_else_is_refused(tmp_path: Any, text: str) -> None:
    file = tmp_path / "filters.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError):
        load_filters(file)
    with pytest.raises(SpecError, match=r"none\.yaml"):
        load_filters(tmp_path / "none.yaml")
