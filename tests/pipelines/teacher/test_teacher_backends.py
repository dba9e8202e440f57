"""Which backend a teacher gets, and that each does what its name says."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import sample_pairs, save_decoder_teacher, save_encoder_teacher

from pipelines.errors import ContractError, ModelError
from pipelines.teacher.backends import choice
from pipelines.teacher.backends.choice import load_backend, resolve_backend
from pipelines.teacher.backends.openvino_backend import OpenVinoBackend
from pipelines.teacher.backends.torch_backend import TorchBackend
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.contract import answers_head, contract_of
from pipelines.teacher.engine import TeacherEngine, load_engine

CPU = torch.device("cpu")
QUERIES, PASSAGES = sample_pairs(40, seed=11)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backends")
    encoders = {name: save_encoder_teacher(root / name, name, steps=0) for name in ("bert", "distilbert")}
    return encoders | {"qwen": save_decoder_teacher(root / "qwen", causal=True, steps=0)}


def engine(folder: Path, **fields: Any) -> TeacherEngine:
    settings: dict[str, Any] = {"max_length": 64, "dtype": "fp32"} | fields
    contract = contract_of(folder, model_id="t", revision=None, **settings)
    return load_engine(folder, contract, device=CPU, threads=2, tokens_per_batch=512)


def native(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> None:
    monkeypatch.setattr(choice, "openvino_precisions", lambda: frozenset(precisions))


def test_auto_is_openvino_on_cpus_and_torch_on_gpus(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    native(monkeypatch, "fp32", "bf16")
    bert = folders["bert"]
    assert resolve_backend("auto", "fp32", device_type="cpu", folder=bert) == ("openvino", "fp32")
    assert resolve_backend("auto", "bf16", device_type="cpu", folder=bert) == ("openvino", "bf16")
    assert resolve_backend("auto", "auto", device_type="cuda", folder=bert) == ("torch", "bf16")
    assert resolve_backend("torch", "fp32", device_type="cpu", folder=bert) == ("torch", "fp32")
    assert resolve_backend("auto", "fp32", device_type="cpu", folder=folders["distilbert"]) == ("torch", "fp32")
    assert resolve_backend("auto", "fp32", device_type="cpu", folder=folders["qwen"]) == ("torch", "fp32")


def test_auto_is_torch_where_openvino_cannot(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    native(monkeypatch, "fp32")
    assert resolve_backend("auto", "bf16", device_type="cpu", folder=folders["bert"]) == ("torch", "bf16")
    native(monkeypatch)
    assert resolve_backend("auto", "fp32", device_type="cpu", folder=folders["bert"]) == ("torch", "fp32")


@pytest.mark.parametrize(
    ("backend", "dtype", "device_type", "message"),
    [
        ("auto", "fp16", "cpu", "teacher.dtype is 'fp16', which is for CUDA"),
        ("torch", "tf32", "cpu", "teacher.dtype is 'tf32', which is for CUDA"),
        ("openvino", "fp32", "cuda", "teacher.backend is 'openvino', which computes on CPUs"),
        ("openvino", "bf16", "cpu", r"cannot compute in bf16 here \(it can in fp32\)"),
    ],
)
def test_what_excludes_each_other_is_refused_by_field(
    backend: str, dtype: str, device_type: str, message: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    native(monkeypatch, "fp32")
    with pytest.raises(ModelError, match=message):
        resolve_backend(backend, dtype, device_type=device_type, folder=folders["bert"])


def test_openvino_that_is_not_installed_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match="nothing: it is not installed"):
        resolve_backend("openvino", "fp32", device_type="cpu", folder=folders["bert"])
    with pytest.raises(ModelError, match=r"pip install 'dualdistill\[openvino\]'"):
        engine(folders["bert"], backend="openvino")


def test_a_contract_names_the_backend_that_computes(folders: dict[str, Path]) -> None:
    for name, kind in (("torch", TorchBackend), ("openvino", OpenVinoBackend)):
        contract = contract_of(folders["bert"], model_id="t", revision=None, max_length=64, dtype="fp32", backend=name)
        backend, _ = load_backend(folders["bert"], contract, device=CPU, threads=3)
        assert isinstance(backend, kind)
        assert backend.workers == 3, "each core computes a batch of its own"
    with pytest.raises(ContractError, match="backend 'onnx' is none of torch"):
        engine(folders["bert"], backend="onnx")


@pytest.mark.parametrize("family", ["bert", "qwen"])
def test_compiled_scores_are_the_plain_ones_over_few_shapes(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {}
    if family == "qwen":
        fields = {"template": "{query}: {passage}. ", "head": answers_head("yes", "no"), "max_length": 400}
    plain = engine(folders[family], backend="torch", **fields)
    compiled = engine(folders[family], backend="torch_compiled", **fields)
    shapes: set[tuple[int, ...]] = set()
    padded = PairBatch.padded

    def noted(self: PairBatch, **sizes: int) -> dict[str, Any]:
        inputs = padded(self, **sizes)
        shapes.add(inputs["input_ids"].shape)
        return inputs

    wanted = plain.score(QUERIES, PASSAGES)
    monkeypatch.setattr(PairBatch, "padded", noted)
    np.testing.assert_allclose(compiled.score(QUERIES, PASSAGES), wanted, rtol=0, atol=1e-5)
    assert all(rows & (rows - 1) == 0 and width % 32 == 0 for rows, width in shapes), shapes


def test_an_answer_must_be_one_token(folders: dict[str, Path]) -> None:
    prompt = {"template": "{query}: {passage}. ", "backend": "torch", "max_length": 300}
    with pytest.raises(ModelError, match=r"teacher\.answers: 'heartlessness' is \d+ tokens"):
        engine(folders["qwen"], head=answers_head("heartlessness", "no"), **prompt)
    with pytest.raises(ModelError, match="both of"):
        engine(folders["qwen"], head=answers_head("no", "no"), **prompt)
