"""A whole job that asks for every export: one folder, whose card, graphs, ranges and numbers belong together."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jobs_for_tests import run
from tiny import tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError

EXPORT = {"formats": ["openvino"], "precisions": ["int8", "binary"], "license": "apache-2.0"}


@pytest.fixture(scope="module")
def finished(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("exported")
    result = run(
        tiny_root, root, tiny_spec(export=EXPORT, student={"projection": 16}, evaluation={"label_only_control": True})
    )
    return root / "jobs" / "job" / "artifacts", result


def test_the_numbers_of_quantised_embeddings_stand_in_metrics_result_and_card(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    artifacts, result = finished
    metrics = json.loads((artifacts / "metrics.json").read_text(encoding="utf-8"))
    after, card = metrics["evaluation"]["systems"]["student_after"], (artifacts / "student" / "README.md").read_text()
    assert [found["search"] for found in metrics["precisions"]] == ["int8", "binary", "binary_rescored"]
    assert [found["bytes_per_embedding"] for found in metrics["precisions"]] == [16, 2, 2]
    for found in metrics["precisions"]:
        for measure, value in found["measures"].items():
            assert found["loss"][measure] == pytest.approx(after[measure] - value)
        name = found["search"].replace("_", ", ")
        assert f"nDCG@10 {found['measures']['nDCG@10']:.3f}" in result["facts"][f"embeddings, {name}"]
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        assert f"{found['measures']['nDCG@10']:.3f}" in row
        assert f"{found['measures']['R@100']:.3f}" in row
    assert json.loads(json.dumps(result)) == result, "a result is plain JSON"


def test_the_ranges_beside_the_student_are_those_of_the_corpus(
    finished: tuple[Path, dict[str, Any]], dataset: Dataset
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = finished[0] / "student"
    documents = SentenceTransformer(str(folder), device="cpu").encode_document(dataset.passages())
    ranges = np.load(folder / "int8_ranges.npy")
    np.testing.assert_allclose(ranges, [documents.min(axis=0), documents.max(axis=0)], atol=1e-6)


def test_the_card_says_what_was_trained_on_what_by_whom(finished: tuple[Path, dict[str, Any]]) -> None:
    artifacts, result = finished
    card = (artifacts / "student" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "sentence-transformers"
    assert matter["license"] == "apache-2.0"
    assert "base_model" not in matter, "a folder of this machine is nothing that a hub could link to"
    assert "`encoder`" in text
    assert result["facts"]["score contract"] in text
    assert "training split: train, 12 labelled queries" in text
    assert "documents: 60" in text
    assert "unlabelled queries: 20" in text
    after = result["evaluation"]["systems"]["student_after"]
    assert f"| Student, distilled | {after['nDCG@10']:.3f} |" in text
    for label in ("Student, before", "Student, labels only (control)", "Teacher, re-ranking"):
        assert f"| {label} |" in text
    assert "list_kl" in text
    assert "learning_rate: 0.003" in text
    assert "hf upload" in text, "nothing is uploaded, so it must say how"
    assert str(artifacts) not in card


def test_every_form_lies_in_one_folder(finished: tuple[Path, dict[str, Any]]) -> None:
    folder = finished[0] / "student"
    for name in (
        "openvino/openvino_model.xml",
        "openvino/openvino_model.bin",
        "2_Dense/model.safetensors",
        "README.md",
    ):
        assert (folder / name).is_file()


def test_without_a_test_split_the_card_claims_nothing(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(dataset={"test_split": None}, export={"precisions": ["int8"]})
    result = run(tiny_root, tmp_path, spec)
    folder = tmp_path / "jobs" / "job" / "artifacts" / "student"
    assert "Not measured" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "int8_ranges.npy").is_file()
    assert result["evaluation"] is None


def test_a_format_whose_extra_is_missing_stops_the_job_before_any_work(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hours of scoring would be lost for an export that could never be written.
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else there(name))
    expected = r"export\.formats\.1 is 'onnx', which needs onnxscript, .* pip install 'dualdistill\[onnx\]'"
    with pytest.raises(ModelError, match=expected):
        run(tiny_root, tmp_path, tiny_spec(export={"formats": ["openvino", "onnx"]}))
    assert not [*tmp_path.rglob("*.parquet"), *tmp_path.rglob("*.npy")]
