"""ONNX and OpenVINO graphs of a student give its embeddings, through the pooling that sentence-transformers loads.

`SentenceTransformer(path, backend=...)` itself needs optimum-onnx or optimum-intel, of which no version installs beside
transformers 5.23; so the graphs run in their own runtimes, and the folder's own modules do the rest.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_tokenizer

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError
from pipelines.spec import ExportFormat, StudentSpec
from pipelines.student import formats
from pipelines.student.export import export_student
from pipelines.student.formats import GRAPHS, require_formats, run_graph, write_graph
from pipelines.student.model import DualEncoder, load_student

TOLERANCE: dict[ExportFormat, float] = {"onnx": 1e-5, "openvino": 1e-4}


def load(folder: Path, **changes: Any) -> DualEncoder:
    torch.manual_seed(0)
    spec = StudentSpec.model_validate({"model": {"id": "encoder"}, "max_length": 24} | changes)
    return load_student(folder, spec, dropout=0.0, device=torch.device("cpu"))


def through(folder: Path, name: ExportFormat, texts: list[str]) -> np.ndarray:
    """Embeddings as sentence-transformers makes them, the encoder replaced by its graph."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    inputs = model.tokenizer(texts, padding=True, truncation=True, max_length=model.max_seq_length, return_tensors="np")
    batch = {key: np.asarray(inputs[key], dtype=np.int64) for key in ("input_ids", "attention_mask")}
    states = torch.from_numpy(np.array(run_graph(folder / GRAPHS[name], name)(batch)))
    features = {"token_embeddings": states, "attention_mask": torch.from_numpy(batch["attention_mask"])}
    with torch.inference_mode():
        for module in list(model)[1:]:
            features = module(features)
    embeddings: np.ndarray = features["sentence_embedding"].numpy()
    return embeddings


def test_both_graphs_give_the_students_embeddings(encoder_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    student = load(encoder_folder, pooling="last_token", projection=8)
    path = export_student(student, tmp_path / "student", formats=("onnx", "openvino"))
    texts = [*dataset.passages(), "heart", "lung " * 100]
    for name, tolerance in TOLERANCE.items():
        expected = student.encode(texts, "document")
        np.testing.assert_allclose(through(path, name, texts), expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(through(path, name, texts[:1]), expected[:1], rtol=0, atol=tolerance)
    assert sorted(file.name for file in (path / "onnx").iterdir()) == ["model.onnx"], (
        "weights of a small one are inside"
    )


def test_a_decoder_without_a_cache_becomes_a_graph(tmp_path: Path) -> None:
    # Keys and values that a decoder hands out for the next token are no tensors, and tracers stop at them.
    from transformers import Qwen3Config, Qwen3Model

    folder = tmp_path / "decoder"
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = Qwen3Config(vocab_size=save_tokenizer(folder), num_key_value_heads=2, head_dim=8, **settings)
    Qwen3Model(config).save_pretrained(folder)
    student = load(folder, pooling="last_token")
    path = export_student(student, tmp_path / "student", formats=("openvino",))
    texts = ["heart", "lung liver often care"]
    np.testing.assert_allclose(through(path, "openvino", texts), student.encode(texts, "document"), rtol=0, atol=1e-4)


def test_a_graph_that_is_another_model_is_refused_and_the_old_folder_stays(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer that took a branch for a constant says nothing; here it forgets the mask."""
    path = export_student(load(encoder_folder), tmp_path / "student")

    def forgets_the_mask(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(attention_mask) if torch.jit.is_tracing() else attention_mask
        states: torch.Tensor = self._encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return states + 0 * attention_mask.unsqueeze(-1)

    monkeypatch.setattr(formats._LastHiddenState, "forward", forgets_the_mask)
    with pytest.raises(
        ModelError, match=r"export\.formats: the openvino graph of a 'bert' encoder is not that encoder"
    ):
        export_student(load(encoder_folder), path, formats=("openvino",))
    assert (path / "model.safetensors").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_a_graph_takes_its_place_below_the_folder(encoder_folder: Path, tmp_path: Path) -> None:
    backbone = load(encoder_folder).backbone
    path = write_graph(backbone, tmp_path, "openvino", pad_id=0, max_length=24)
    assert path == tmp_path / "openvino" / "openvino_model.xml"
    assert not [module for module in backbone.modules() if module.training]


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnx"), ("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_extra_is_named_with_field_and_value(
    monkeypatch: pytest.MonkeyPatch, name: ExportFormat, package: str
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else there(asked))
    with pytest.raises(ModelError, match=rf"export\.formats\.0 is '{name}', which needs {package}, .*\[{name}\]"):
        require_formats([name])


def test_nothing_is_asked_of_who_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    require_formats([])
