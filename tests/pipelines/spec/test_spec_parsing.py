"""A job description is either exactly understood or refused with the place and the value: no default by misspelling."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import spec_data

from pipelines.spec import DistillationSpec, SpecError, load_spec, parse_spec

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart" / "job.yaml"


def changed(dotted: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(spec_data()))
    *parents, leaf = dotted.split(".")
    node = data
    for part in parents:
        node = node.setdefault(part, {})
    node[leaf] = value
    return data


def problems(data: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    for path, detail in caught.value.problems:
        assert path in str(caught.value)
        assert detail in str(caught.value)
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    "path", ["sede", "dataset.pth", "teacher.train.max_step", "training.quereis_per_step", "student.model.revison"]
)
def test_an_unknown_key_at_any_depth_is_refused_with_its_path(path: str) -> None:
    # A misspelt setting that silently keeps its default is found after a night of training, if ever.
    assert problems(changed(path, 1)) == {path: "unknown field"}


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("rounds", 0, "0"),
        ("seed", -1, "-1"),
        ("name", "../evil", "'../evil'"),
        ("teacher.dtype", "int8", "'int8'"),
        ("teacher.backend", "onnx", "'onnx'"),
        ("teacher.truncation", "only_first", "'only_first'"),
        ("teacher.tokens_per_batch", 8, "8"),
        ("student.max_length", 4, "4"),
        ("training.learning_rate", float("nan"), "nan"),
        ("training.weight_decay", float("inf"), "inf"),
        ("dataset.unlabelled.min_confidence", 1.5, "1.5"),
        ("candidates.bm25.b", "lots", "'lots'"),
    ],
)
def test_a_bad_value_is_shown_beside_its_path(path: str, value: Any, shown: str) -> None:
    found = problems(changed(path, value))
    assert list(found) == [path]
    assert shown in found[path]


def test_a_missing_required_field_is_named() -> None:
    data = spec_data()
    del data["teacher"]["model"]
    assert list(problems(data)) == ["teacher.model"]


def test_all_problems_are_reported_at_once() -> None:
    # One per submission would make a user submit five times.
    data = changed("rounds", 0) | {"colour": "red"}
    assert set(problems(data)) == {"rounds", "colour"}


def test_an_objective_problem_names_the_position_of_the_term() -> None:
    data = changed("training.objective", [{"name": "list_kl"}, {"name": "list_kl", "temprature": 1}])
    (path,) = problems(data)
    assert path.startswith("training.objective.1")
    assert path.endswith("temprature")


@pytest.mark.parametrize("data", [None, [], "name: x", 3])
def test_something_that_is_no_mapping_is_refused(data: Any) -> None:
    assert list(problems(data)) == ["spec"]


def test_a_huge_value_is_not_echoed_whole() -> None:
    # Error messages end in database rows and terminals.
    assert len(problems(changed("teacher.dtype", "x" * 10_000))["teacher.dtype"]) < 300


@pytest.mark.parametrize(
    ("objective", "path", "message"),
    [
        ([{"name": "list_ml"}], "training.objective.0", "unknown name 'list_ml'; did you mean 'list_mle'?"),
        ([{"name": "xyzzy"}], "training.objective.0", "unknown name 'xyzzy'; known are cprd, "),
        ([{"weight": 1}], "training.objective.0", "Field required: name, got {'weight': 1}"),
        ({"name": "cprd"}, "training.objective", "should be a list, got {'name': 'cprd'}"),
        ([{"name": "info_nce", "learn": "temperature"}], "training.objective.0.learn", "should be a list, got"),
    ],
)
def test_a_mistake_in_an_objective_is_told_in_the_words_of_the_file(objective: Any, path: str, message: str) -> None:
    found = problems(changed("training.objective", objective))
    assert list(found) == [path]
    assert found[path].startswith(message)


IMPOSSIBLE: list[tuple[dict[str, Any], str, str]] = [
    ({"training.candidates_per_query": 7}, "training.candidates_per_query", "7 is more than"),
    ({"training.objective": [{"name": "margin_mse"}]}, "training.objective.0", "cosines"),
    ({"training.objective": [{"name": "margin_mse", "scale": 0.9}]}, "training.objective.0", "its scale is 0.9"),
    (
        {"training.objective": [{"name": "list_kl"}], "student.heads": {"serve": "contrastive"}},
        "training.objective",
        "the contrastive head is served",
    ),
    (
        {"training.objective": [{"name": "info_nce"}, {"name": "list_kl", "weight": 0}], "student.heads": {}},
        "training.objective",
        "the distillation head is served",
    ),
    ({"training.objective": [{"name": "list_kl"}, {"name": "nspt"}]}, "training.objective.1", "student.num_layers"),
    (
        {
            "training.objective": [{"name": "list_kl"}, {"name": "info_nce"}, {"name": "nspt"}],
            "student.heads": {},
            "student.num_layers": None,
        },
        "training.objective.2",
        "student.heads makes another student",
    ),
    (
        {"training.objective": [{"name": "amcl"}], "student.matryoshka": {"dimensions": [16]}},
        "training.objective.0",
        "the heads of a prefix",
    ),
    (
        {"training.positives_per_query": 4, "training.candidates_per_query": 4},
        "training.positives_per_query",
        "leaves no room for a negative",
    ),
    ({"training.objective": [{"name": "info_nce", "learn": ["scale"]}]}, "training.objective.0.learn", "cannot be"),
    ({"training.objective": [{"name": "list_kl", "weight": 0}]}, "training", "weight above 0"),
    ({"training.objective": []}, "training", "at least one term"),
    ({"candidates.bm25": None, "candidates.dense": None}, "candidates", "at least one source"),
    (
        {"dataset.unlabelled.positive": "none", "training.objective": [{"name": "info_nce"}]},
        "dataset.unlabelled.positive",
        "without a positive",
    ),
    ({"dataset.train_split": None, "teacher.train": {}}, "teacher.train", "train_split is null"),
    ({"teacher.template": "Is it {passage}?"}, "teacher.template", "{query} and then {passage}"),
    ({"teacher.template": "{passage} {query}"}, "teacher.template", "{query} and then {passage}"),
    ({"teacher.template": "{query} {query} {passage}"}, "teacher.template", "each once"),
    ({"teacher.answers": {}}, "teacher", "set template"),
    ({"teacher.answers": {}, "teacher.template": "qwen3_reranker", "teacher.train": {}}, "teacher", "excludes answers"),
    ({"dataset.train_split": None, "dataset.unlabelled.use": False}, "dataset.train_split", "no queries"),
    ({"dataset.test_split": "train"}, "dataset", "must differ"),
    ({"dataset.dev_split": "test"}, "dataset", "must differ"),
]


@pytest.mark.parametrize(("changes", "path", "words"), IMPOSSIBLE)
def test_an_impossible_combination_is_refused_with_the_field_to_change(
    changes: dict[str, Any], path: str, words: str
) -> None:
    data = spec_data()
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        node = data
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    found = problems(data)
    assert list(found) == [path]
    assert words in found[path]


def test_a_setting_of_a_pool_that_is_not_used_contradicts_nothing() -> None:
    # `positive: none` says what unlabelled queries do; without any of them, info_nce alone is a fine objective.
    data = spec_data(
        dataset={"path": "data", "unlabelled": {"use": False, "positive": "none"}},
        training={"objective": [{"name": "info_nce"}], "candidates_per_query": 4},
    )
    assert not parse_spec(data).dataset.unlabelled.use


def test_the_quickstart_is_a_valid_job_with_both_pools() -> None:
    spec = load_spec(QUICKSTART)
    assert spec.dataset.unlabelled.use
    assert spec.teacher.train is not None


def test_yaml_and_rest_describe_the_same_job() -> None:
    # One schema serves both: what the CLI reads from YAML, written as JSON and posted, is the same spec.
    spec = load_spec(QUICKSTART)
    body = json.dumps(spec.model_dump(mode="json"))
    assert parse_spec(json.loads(body)) == spec
    assert DistillationSpec.model_validate_json(body) == spec


def test_a_spec_is_frozen() -> None:
    spec = parse_spec(spec_data())
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 4  # type: ignore[misc]


def test_a_float_in_yaml_1_1_spelling_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-4 (no dot) as a string; a learning rate written so must not be an error.
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec_data()).replace("0.003", "1e-4"), encoding="utf-8")
    assert "1e-4" in path.read_text(encoding="utf-8")
    assert load_spec(path).training.learning_rate == 1e-4


@pytest.mark.parametrize("section", ["training", "teacher.train"])
def test_training_in_fp16_is_refused(section: str) -> None:
    """Its gradients underflow without loss scaling, and nothing would show it."""
    data = spec_data()
    if section == "training":
        data["training"] |= {"dtype": "fp16"}
    else:
        data["teacher"] |= {"train": {"dtype": "fp16"}}
    with pytest.raises(SpecError) as refused:
        parse_spec(data)
    assert [field for field, _ in refused.value.problems] == [f"{section}.dtype"]
