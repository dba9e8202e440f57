"""Rounds as a number, as a section, and what adversarial rounds refuse."""

from typing import Any

import pytest
from tiny import spec_data

from pipelines.spec import SpecError, parse_spec


def problems(**sections: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        parse_spec(spec_data(**sections))
    return dict(refused.value.problems)


def adversarial(**more: Any) -> dict[str, Any]:
    return {
        "rounds": {"count": 2, "mode": "adversarial", "adversarial": more},
        "candidates": {"bm25": None},
        "training": {"objective": [{"name": "ar2", "weight": 0.5}, {"name": "list_kl"}]},
    }


def test_a_number_is_the_count() -> None:
    assert parse_spec(spec_data(rounds=3)).rounds == parse_spec(spec_data(rounds={"count": 3})).rounds
    assert parse_spec(spec_data()).rounds.count == 1


def test_what_is_written_out_is_read_again() -> None:
    spec = parse_spec(spec_data(**adversarial(sampling="simans", a=2.0)))
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_adversarial_rounds_have_defaults() -> None:
    spec = parse_spec(spec_data(**adversarial() | {"rounds": {"mode": "adversarial"}}))
    assert spec.rounds.adversarial is not None
    assert spec.rounds.adversarial.ranker.steps_per_round == 500


@pytest.mark.parametrize("value", [0, "many", 2.5, True, [3]])
def test_a_bad_count_is_named_where_it_was_written(value: Any) -> None:
    (path,) = problems(rounds=value)
    assert path == "rounds"


def test_settings_without_their_mode_are_refused() -> None:
    assert "mode is 'distillation'" in problems(rounds={"count": 2, "adversarial": {}})["rounds"]
    assert "belong to sampling 'simans'" in problems(**adversarial(a=2.0))["rounds.adversarial"]
    assert "knows no b" in problems(**adversarial(sampling="simans", form="ms_marco", b=1.0))["rounds.adversarial"]
    alone = adversarial(refresh_steps_early=3) | {
        "rounds": {"mode": "adversarial", "adversarial": {"refresh_steps_early": 3}}
    }
    assert "no round follows" in problems(**alone)["rounds.adversarial.refresh_steps_early"]


@pytest.mark.parametrize(
    ("path", "sections"),
    [
        ("dataset.train_split", {"dataset": {"train_split": None}}),
        ("candidates.dense", {"candidates": {"bm25": {"top_k": 5}, "dense": None}}),
        ("training.use_labels", {"training": {"use_labels": False}}),
        ("training.objective", {"training": {"objective": [{"name": "list_kl"}]}}),
        ("training.negatives", {"training": {"negatives": {"strategy": "teacher_top"}}}),
        ("training.pacing", {"training": {"pacing": {}}}),
        ("training.find_learning_rate", {"training": {"find_learning_rate": True}}),
        ("teacher.template", {"teacher": {"template": "qwen3_reranker", "answers": {}}}),
        ("dataset.unlabelled.queries_per_round", {"dataset": {"unlabelled": {"queries_per_round": 5}}}),
    ],
)
def test_what_adversarial_rounds_cannot_have_is_named(path: str, sections: dict[str, Any]) -> None:
    given = adversarial()
    for name, fields in sections.items():
        given[name] = given.get(name, {}) | fields
    assert "rounds.mode is 'adversarial'" in problems(**given)[path]
