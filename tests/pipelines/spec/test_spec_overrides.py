"""`--set a.b.c=value` reaches every field, lists included, and a wrong path says so instead of doing nothing."""

from pathlib import Path

import pytest
import yaml
from tiny import spec_data

from pipelines.spec import DistillationSpec, SpecError, load_spec


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    data = spec_data()
    data["training"]["objective"] = [{"name": "list_kl"}, {"name": "info_nce"}]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def refused(path: Path, overrides: dict[str, str] | None = None) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return caught.value.problems


def test_values_are_read_as_yaml(job_file: Path) -> None:
    spec = load_spec(
        job_file,
        {
            "dataset.path": "elsewhere/data",
            "seed": "99",
            "training.learning_rate": "5e-5",
            "dataset.train_split": "null",
            "evaluation.label_only_control": "true",
            "candidates.dense": "{top_k: 2}",
        },
    )
    assert spec.dataset.path == "elsewhere/data"
    assert spec.seed == 99
    assert spec.training.learning_rate == 5e-5
    assert spec.dataset.train_split is None
    assert spec.evaluation.label_only_control is True
    assert spec.candidates.dense is not None
    assert spec.candidates.dense.top_k == 2


def test_a_list_is_reached_by_position(job_file: Path) -> None:
    spec = load_spec(job_file, {"training.objective.1.temperature": "0.1", "training.objective.0": "{name: cprd}"})
    assert spec.training.objective[0].name == "cprd"
    assert spec.training.objective[1].model_dump()["temperature"] == 0.1


def test_a_section_that_the_file_leaves_out_is_created(job_file: Path) -> None:
    assert load_spec(job_file, {"teacher.train.max_steps": "7"}).teacher.train is not None


@pytest.mark.parametrize("position", ["2", "-1", "first", "²"])
def test_a_position_that_is_not_there_is_refused(job_file: Path, position: str) -> None:
    for dotted in (f"training.objective.{position}.temperature", f"training.objective.{position}"):
        ((path, detail),) = refused(job_file, {dotted: "1"})
        assert path == dotted
        assert repr(position) in detail


def test_a_misspelt_override_is_an_unknown_field(job_file: Path) -> None:
    assert refused(job_file, {"training.epoch": "2"}) == [("training.epoch", "unknown field")]


def test_an_override_below_a_plain_value_is_refused(job_file: Path) -> None:
    ((path, detail),) = refused(job_file, {"seed.lower": "2"})
    assert path == "seed.lower"
    assert "'seed'" in detail


def test_an_override_that_is_not_yaml_names_its_field(job_file: Path) -> None:
    ((path, detail),) = refused(job_file, {"name": "[broken"})
    assert path == "name"
    assert "[broken" in detail


def test_overrides_are_validated_like_the_file(job_file: Path) -> None:
    ((path, detail),) = refused(job_file, {"rounds": "0"})
    assert path == "rounds"
    assert "got 0" in detail


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [", "not YAML"), (b"- a\n- b\n", "mapping"), (b"", "mapping"), (b"\xff\xfe\x00\xd8", "not YAML")],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    ((field, detail),) = refused(path)
    assert field == "spec"
    assert words in detail
    assert "job.yaml" in detail


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        ((field, detail),) = refused(path)
        assert field == "spec"
        assert str(path) in detail


def test_a_file_without_overrides_is_read_as_it_is(job_file: Path) -> None:
    assert isinstance(load_spec(job_file), DistillationSpec)
