"""Which backend a teacher gets, and that each does what its name says."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import sample_pairs, save_decoder_teacher, save_encoder_teacher

from pipelines.errors import ContractError, ModelError
from pipelines.pretrained import load_folder_tokenizer
from pipelines.teacher.backends import choice
from pipelines.teacher.backends.choice import kernel_fits, load_backend, resolve_backend
from pipelines.teacher.backends.openvino_backend import OpenVinoBackend
from pipelines.teacher.backends.torch_backend import TorchBackend
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.contract import answers_head, contract_of
from pipelines.teacher.engine import TeacherEngine, load_engine
from pipelines.teacher.model import pair_model

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

    by_length = sorted(range(len(QUERIES)), key=lambda row: len(PASSAGES[row]))
    few = [*by_length[:8], *by_length[-3:]]  # a compilation takes seconds
    queries, passages = [QUERIES[row] for row in few], [PASSAGES[row] for row in few]
    wanted = plain.score(queries, passages)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    monkeypatch.setattr(PairBatch, "padded", noted)
    np.testing.assert_allclose(compiled.score(queries, passages), wanted, rtol=0, atol=1e-5)
    assert len(shapes) > 1
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert compilations == len(shapes), "each shape is compiled, none falls back to eager"
    assert all(rows & (rows - 1) == 0 and width % 32 == 0 for rows, width in shapes), shapes


def test_padding_is_left_out_only_where_the_kernel_runs() -> None:
    assert kernel_fits(64, capability=(9, 0))
    assert kernel_fits(32, capability=(8, 0))
    assert not kernel_fits(64, capability=(7, 5)), "fp16 on a T4"
    assert not kernel_fits(26, capability=(9, 0)), "TinyBERT has 312 / 12"
    assert not kernel_fits(320, capability=(9, 0))


def test_answers_of_families_that_bend_their_logits_are_refused(folders: dict[str, Path]) -> None:
    # Gemma 2 caps its logits: the order of differences is another one then.
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=64, intermediate_size=16, num_key_value_heads=2, **sizes))
    with pytest.raises(ModelError, match="a gemma2 model does not score by answers here; these do: llama"):
        pair_model(model, load_folder_tokenizer(folders["qwen"]), head=answers_head("yes", "no"))


def test_openvino_pins_no_threads(folders: dict[str, Path]) -> None:
    # Two replicas on one machine would pin theirs to the same first core.
    contract = contract_of(
        folders["bert"], model_id="t", revision=None, max_length=64, dtype="fp32", backend="openvino"
    )
    backend, _ = load_backend(folders["bert"], contract, device=CPU, threads=1)
    assert backend._compiled.get_property("ENABLE_CPU_PINNING") is False


def test_an_answer_must_be_one_token(folders: dict[str, Path]) -> None:
    prompt = {"template": "{query}: {passage}. ", "backend": "torch", "max_length": 300}
    with pytest.raises(ModelError, match=r"teacher\.answers: 'heartlessness' is \d+ tokens"):
        engine(folders["qwen"], head=answers_head("heartlessness", "no"), **prompt)
    with pytest.raises(ModelError, match="both of"):
        engine(folders["qwen"], head=answers_head("no", "no"), **prompt)
