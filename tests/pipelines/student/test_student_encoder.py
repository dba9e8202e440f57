"""The exported folder is the trained student: sentence-transformers gives the same vectors, prompts and all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_encoder, save_tokenizer, tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError
from pipelines.spec import StudentSpec
from pipelines.student.export import export_student
from pipelines.student.model import DualEncoder, load_student

CPU = torch.device("cpu")


def student_spec(**changes: Any) -> StudentSpec:
    settings: dict[str, Any] = {"num_layers": None, "query_prompt": "query study: ", "document_prompt": "care: "}
    return StudentSpec.model_validate({"model": {"id": "encoder"}, "max_length": 24} | settings | changes)


def load(folder: Path, **changes: Any) -> DualEncoder:
    return load_student(folder, student_spec(**changes), dropout=0.0, device=CPU)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("num_layers", [None, 1])
def test_sentence_transformers_loads_the_export_and_gives_the_same_vectors(
    encoder_folder: Path, dataset: Dataset, tmp_path: Path, pooling: str, normalize: bool, num_layers: int | None
) -> None:
    from sentence_transformers import SentenceTransformer

    student = load(encoder_folder, pooling=pooling, normalize=normalize, num_layers=num_layers)
    theirs = SentenceTransformer(str(export_student(student, tmp_path / "student")), device="cpu")
    queries = dataset.queries["text"].to_pylist()
    documents = [*dataset.passages(), "heart " * 100, "  spaced  text ", "unknownword"]
    np.testing.assert_allclose(theirs.encode_query(queries), student.encode(queries, "query"), atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(documents), student.encode(documents, "document"), atol=1e-5)
    assert theirs.max_seq_length == 24
    assert theirs.similarity_fn_name == ("cosine" if normalize else "dot")
    norms = np.linalg.norm(student.encode(queries, "query"), axis=1)
    assert np.allclose(norms, 1, atol=1e-5) == normalize


def test_prompts_are_read(encoder_folder: Path) -> None:
    # Were they dropped on both sides, ours and theirs would still agree.
    student = load(encoder_folder)
    plain = load(encoder_folder, query_prompt="", document_prompt="")
    np.testing.assert_allclose(student.encode(["heart"], "query"), plain.encode(["query study: heart"], "query"))
    np.testing.assert_allclose(student.encode(["heart"], "document"), plain.encode(["care: heart"], "document"))
    assert np.abs(student.encode(["heart"], "query") - plain.encode(["heart"], "query")).max() > 1e-3


def test_an_embedding_does_not_depend_on_the_texts_beside_it(encoder_folder: Path, dataset: Dataset) -> None:
    student = load(encoder_folder)
    passages = dataset.passages()
    alone = np.concatenate([student.encode([text], "document") for text in passages])
    np.testing.assert_allclose(student.encode(passages, "document"), alone, atol=1e-5)
    np.testing.assert_allclose(student.encode(passages, "document", tokens_per_batch=1), alone, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(student.embed(passages, "document").numpy(), alone, atol=1e-5)


def test_encode_turns_dropout_off_and_leaves_the_mode_as_it_was(encoder_folder: Path) -> None:
    # Mining between training steps must neither be noisy nor end the training mode.
    student = load_student(encoder_folder, student_spec(), dropout=0.5, device=CPU)
    student.train()
    first = student.encode(["heart"], "query")
    assert first.tobytes() == student.encode(["heart"], "query").tobytes()
    assert student.training
    assert not torch.equal(student.embed(["heart"], "query"), student.embed(["heart"], "query"))
    student.eval()
    student.encode(["heart"], "query")
    assert not student.training


def test_nothing_in_nothing_out(encoder_folder: Path) -> None:
    assert load(encoder_folder).encode([], "query").shape == (0, 32)


def test_the_first_layers_are_kept(encoder_folder: Path) -> None:
    whole, cut = load(encoder_folder), load(encoder_folder, num_layers=1)
    assert len(cut.backbone.encoder.layer) == 1
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(cut.backbone.state_dict()[name], whole.backbone.state_dict()[name])
    assert np.abs(cut.encode(["heart"], "query") - whole.encode(["heart"], "query")).max() > 1e-3


def test_more_layers_than_there_are_is_an_error(encoder_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"student\.num_layers is 3, 'encoder' has 2 layers"):
        load(encoder_folder, num_layers=3)


def test_more_tokens_than_positions_is_an_error(encoder_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"student\.max_length is 513, the model has positions for 512 tokens"):
        load(encoder_folder, max_length=513)


def test_an_encoder_whose_config_lists_its_layers_can_be_cut(tmp_path: Path) -> None:
    # ModernBERT and others name a type per layer; a cut config must stay consistent to load, and to load again.
    from sentence_transformers import SentenceTransformer
    from transformers import ModernBertConfig, ModernBertModel

    size = save_tokenizer(tmp_path / "modern")
    special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = ModernBertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, **special
    )
    ModernBertModel(config).save_pretrained(tmp_path / "modern")
    student = load(tmp_path / "modern", num_layers=2)
    assert len(student.backbone.layers) == 2
    theirs = SentenceTransformer(str(export_student(student, tmp_path / "student")), device="cpu")
    np.testing.assert_allclose(theirs.encode_query(["heart"]), student.encode(["heart"], "query"), atol=1e-5)


def test_a_checkpoint_that_lacks_weights_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    # Layers that the file does not hold would be random, and training might even hide it.
    folder = save_encoder(tmp_path / "short")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"encoder\.layer\.2\."):
        load(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "encoder", vocab_size=60)
    with pytest.raises(ModelError, match="the embedding 60 rows"):
        load(folder)


def test_weights_that_are_not_finite_are_an_error_and_no_embedding(encoder_folder: Path) -> None:
    student = load(encoder_folder)
    with torch.no_grad():
        student.backbone.embeddings.LayerNorm.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        student.encode(["heart"], "query")


def test_an_export_replaces_the_old_one_whole(encoder_folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    path = tmp_path / "artifacts" / "student"
    export_student(load(encoder_folder), path)
    (path / "leftover.txt").write_text("from an older attempt", encoding="utf-8")
    cut = load(encoder_folder, num_layers=1)
    export_student(cut, path)
    assert not (path / "leftover.txt").exists()
    theirs = SentenceTransformer(str(path), device="cpu")
    np.testing.assert_allclose(theirs.encode_query(["heart"]), cut.encode(["heart"], "query"), atol=1e-5)
    assert [entry.name for entry in path.parent.iterdir()] == ["student"], "scratch folders must not stay"


def test_an_export_that_fails_leaves_the_old_one(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_student(load(encoder_folder), tmp_path / "student")
    before = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer.save_pretrained", disk_full)
    with pytest.raises(OSError, match="no space"):
        export_student(load(encoder_folder, num_layers=1), path)
    assert before == {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_weights_are_exported_as_safetensors_only(encoder_folder: Path, tmp_path: Path) -> None:
    path = export_student(load(encoder_folder), tmp_path / "student")
    assert (path / "model.safetensors").is_file()
    assert not [*path.rglob("*.bin"), *path.rglob("*.pt")]


def test_the_tiny_job_describes_a_student(encoder_folder: Path) -> None:
    student = load_student(encoder_folder, tiny_spec().student, dropout=0.0, device=CPU)
    assert student.dimension == 32
    assert student.device == CPU
