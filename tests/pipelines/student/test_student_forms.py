"""Every form a student can be served in, loaded by sentence-transformers: the same vectors to 1e-6, whatever the form.

A form that trains as one thing and loads as another is searched a little worse for ever, and nothing says so.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_tokenizer

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError
from pipelines.spec import StudentSpec
from pipelines.student.export import export_student
from pipelines.student.matryoshka import truncated
from pipelines.student.model import DualEncoder, load_student

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "projection-shorter": {"projection": 8},
    "projection-longer": {"projection": 40},
    "interpolated": {"heads": {"dimension": 8, "alpha": 0.3}},
    "contrastive": {"heads": {"serve": "contrastive", "dimension": 24}},
}


def load(folder: Path, **changes: Any) -> DualEncoder:
    settings: dict[str, Any] = {"model": {"id": "encoder"}, "max_length": 24}
    torch.manual_seed(0)
    spec = StudentSpec.model_validate(settings | changes)
    return load_student(folder, spec, dropout=0.0, device=torch.device("cpu"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last_token"])
@pytest.mark.parametrize("form", HEADS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("prompts", [True, False])
def test_sentence_transformers_gives_the_students_vectors(
    encoder_folder: Path, dataset: Dataset, tmp_path: Path, pooling: str, form: str, normalize: bool, prompts: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    said = {"query_prompt": "study of: ", "document_prompt": "care: "} if prompts else {}
    student = load(encoder_folder, pooling=pooling, normalize=normalize, **HEADS[form], **said)
    theirs = SentenceTransformer(str(export_student(student, tmp_path / "student")), device="cpu")
    queries, documents = dataset.queries["text"].to_pylist(), [*dataset.passages(), "heart " * 100, "", "heart"]
    ours = student.encode(documents, "document")
    scale = max(1.0, float(np.abs(ours).max()))  # vectors without a norm are larger than 1
    np.testing.assert_allclose(theirs.encode_document(documents), ours, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(
        theirs.encode_query(queries), student.encode(queries, "query"), rtol=0, atol=1e-6 * scale
    )
    assert theirs.get_embedding_dimension() == student.dimension
    # The text alone, its prompt put before it by hand: were prompts dropped on both sides, both would still agree.
    prompt = said.get("document_prompt", "")
    alone = theirs.encode([prompt + "heart"])
    np.testing.assert_allclose(alone[0], ours[-1], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("form", ["plain", "projection-shorter", "projection-longer", "contrastive"])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_prefixes_of_every_form_are_the_same_when_loaded(
    encoder_folder: Path, dataset: Dataset, tmp_path: Path, form: str, pooling: str
) -> None:
    from sentence_transformers import SentenceTransformer

    student = load(encoder_folder, pooling=pooling, matryoshka={"dimensions": [6, 4]}, **HEADS[form])
    path = export_student(student, tmp_path / "student")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert config["matryoshka_dimensions"] == [student.dimension, 6, 4]
    theirs = SentenceTransformer(str(path), device="cpu", truncate_dim=4)
    ours = truncated(torch.from_numpy(student.encode(dataset.passages(), "document")), 4, normalize=True)
    found = theirs.encode_document(dataset.passages(), normalize_embeddings=True)
    np.testing.assert_allclose(found, ours.numpy(), rtol=0, atol=2e-6)


def test_the_last_token_is_the_last_that_is_no_padding(encoder_folder: Path) -> None:
    student = load(encoder_folder, pooling="last_token", normalize=False)
    texts = ["heart", "heart lung liver often care"]
    with torch.no_grad():
        together = student.embed(texts, "document")
        for row, text in enumerate(texts):
            inputs = student.tokenizer(text, return_tensors="pt")
            expected = student.backbone(**inputs).last_hidden_state[0, -1]
            torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-5)


def test_a_decoder_that_pads_on_the_left_and_knows_no_padding_is_exported_as_it_was_trained(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Embedding decoders come so; a loader that padded otherwise would find another last token."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    folder = tmp_path / "decoder"
    size = save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side, tokenizer.pad_token, tokenizer.eos_token = "left", None, "[SEP]"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        initializer_range=0.2,
    )
    Qwen3Model(config).save_pretrained(folder)
    student = load(folder, pooling="last_token", projection=16)
    theirs = SentenceTransformer(str(export_student(student, tmp_path / "student")), device="cpu")
    passages = dataset.passages()
    np.testing.assert_allclose(
        theirs.encode_document(passages), student.encode(passages, "document"), rtol=0, atol=1e-6
    )
    assert theirs.tokenizer.padding_side == "right"
    alone = np.concatenate([student.encode([text], "document") for text in passages[:5]])
    np.testing.assert_allclose(student.encode(passages, "document")[:5], alone, rtol=0, atol=1e-5)


def test_a_projection_begins_without_changing_the_geometry_and_learns(encoder_folder: Path) -> None:
    plain, same, short = (load(encoder_folder, projection=size) for size in (None, 32, 8))
    assert plain.encode(["heart"], "query").tobytes() == same.encode(["heart"], "query").tobytes()
    assert short.projection is not None
    weight = short.projection.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # training in bf16 must serve what fp32 serves
        views = short.views(torch.randn(2, 32))
    assert views.served.dtype == torch.float32
    assert views.served is views.contrastive is views.distillation
    short.embed(["heart"], "query")[0, 0].backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.norm() > 1e-4


def test_a_projection_is_one_dense_module_and_no_start_for_another_student(
    encoder_folder: Path, tmp_path: Path
) -> None:
    path = export_student(load(encoder_folder, projection=8), tmp_path / "student")
    modules = [item["type"].rsplit(".", 1)[-1] for item in json.loads((path / "modules.json").read_text())]
    assert modules == ["Transformer", "Pooling", "Dense", "Normalize"]
    with pytest.raises(ModelError, match="Dense module"):
        load(path)


def test_a_prefix_no_shorter_than_the_projection_is_refused(encoder_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"matryoshka\.dimensions has 8, which is not below projection 8"):
        load(encoder_folder, projection=8, matryoshka={"dimensions": [8]})
    with pytest.raises(ValueError, match="projection 8 and heads exclude each other"):
        load(encoder_folder, projection=8, heads={})
