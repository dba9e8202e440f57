"""The model card: YAML that hubs read, no claim without a fact, and no way to write its tables from outside."""

import dataclasses
from typing import Any

import pytest
import yaml

from pipelines.student.model_card import CardFacts, Table, model_card

FACTS = CardFacts(
    name="my job",
    base_model="org/encoder",
    base_model_on_hub=True,
    license="apache-2.0",
    form={"layers": "the first 2"},
    data={"name": "medquad", "documents": "60"},
    teacher={"model": "org/teacher", "score contract": "abc123"},
    objective={"list_kl": {"weight": 1.0, "temperature": 0.05}},
    training={"seed": 3, "learning_rate": 3e-4},
    summary=["It rose."],
    results=Table(["", "nDCG@10"], [["Student, distilled", "0.700"]]),
    precisions=Table(["embeddings", "bytes", "nDCG@10", "loss"], [["int8", "32", "0.698", "+0.002"]]),
    rescored_from=4,
    matryoshka=(16, 4),
    formats=("onnx", "openvino"),
    has_int8_ranges=True,
    normalized=True,
    versions={"torch": "2.13.0"},
)


def card(**changes: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    start, front, text = model_card(dataclasses.replace(FACTS, **changes)).split("---\n", 2)
    assert start == "", "hubs read front matter on the first line only"
    return yaml.safe_load(front), text


def test_the_front_matter_is_what_hubs_read() -> None:
    matter, _ = card()
    assert matter["library_name"] == "sentence-transformers"
    assert matter["license"] == "apache-2.0"
    assert matter["base_model"] == "org/encoder"
    assert {"sentence-transformers", "sentence-similarity", "onnx", "openvino"} <= set(matter["tags"])


def test_every_fact_is_told() -> None:
    _, text = card()
    told = [
        "abc123",
        "medquad",
        "org/teacher",
        "temperature: 0.05",
        "learning_rate: 0.0003",
        "| int8 | 32 | 0.698 | +0.002 |",
    ]
    told += ["truncate_dim=16", 'backend="onnx"', 'backend="openvino"', "int8_ranges.npy", "hf upload", "torch 2.13.0"]
    for fact in (*told, "| Student, distilled | 0.700 |", "It rose."):
        assert fact in text


def test_what_is_not_known_is_not_claimed() -> None:
    changes: dict[str, Any] = {"license": None, "base_model_on_hub": False, "results": None, "precisions": None}
    matter, text = card(**changes, summary=[], matryoshka=(), formats=(), has_int8_ranges=False)
    assert not {"license", "base_model"} & set(matter)
    assert "No licence was given" in text
    assert "Not measured" in text
    for absent in ("truncate_dim", "backend=", "int8", "Smaller embeddings", "{{", "None"):
        assert absent not in text


@pytest.mark.parametrize("name", ["a | b", "x\n## Results", "<script>", "[link](http://x)", "`code`"])
def test_names_from_outside_are_text(name: str) -> None:
    _, text = card(data={"name": name}, base_model=name, results=Table(["", "nDCG@10"], [[name, "0.7"]]))
    (row,) = [line for line in text.splitlines() if line.endswith("| 0.7 |")]
    assert row.replace("\\|", "").count("|") == 3
    assert text.count("\n## Results") == 1
    assert "<script>" not in text.replace("`<script>`", "")
    assert "](" not in text.replace("`[link](http://x)`", "").replace("\\](", "")
