"""What would score plausible nonsense is refused at the door: wrong heads, random weights, a stranger's tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import save_decoder_teacher
from safetensors.torch import load_file, save_file
from tiny import save_cross_encoder

from pipelines.errors import ModelError
from pipelines.teacher.contract import answers_head
from pipelines.teacher.loading import load_cross_encoder


def load(folder: Path) -> None:
    load_cross_encoder(folder, dtype=torch.float32, device=torch.device("cpu"))


def without(folder: Path, target: Path, *names: str) -> Path:
    copy = Path(shutil.copytree(folder, target))
    weights = load_file(copy / "model.safetensors")
    for name in names:
        del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_cross_encoder_is_loaded_in_eval_mode(teacher_folder: Path) -> None:
    model, tokenizer = load_cross_encoder(teacher_folder, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert not model.training
    assert next(model.parameters()).dtype == torch.bfloat16
    assert len(tokenizer) > 50


def test_two_labels_are_refused(tmp_path: Path) -> None:
    # Which of two logits is "relevant"? Guessing is wrong half of the time.
    with pytest.raises(ModelError, match="num_labels=2"):
        load(save_cross_encoder(tmp_path / "two", num_labels=2))


def test_an_encoder_without_a_head_is_refused_with_the_way_out(encoder_folder: Path) -> None:
    # transformers would give it a random head and a warning.
    with pytest.raises(ModelError, match=r"BertModel.*teacher\.train"):
        load(encoder_folder)


def test_weights_that_are_missing_are_refused_by_name(teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        load(without(teacher_folder, tmp_path / "headless", "classifier.weight"))
    name = "bert.encoder.layer.1.output.dense.weight"
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(without(teacher_folder, tmp_path / "gap", name))


def test_a_head_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    # A config edited to say one label does not make it so.
    folder = save_cross_encoder(tmp_path / "edited", num_labels=2)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path: Path) -> None:
    # Ids beyond the table crash at the first rare word, hours into a job; on a GPU they take the device along.
    folder = save_cross_encoder(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    weights[name] = weights[name][:50].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}), encoding="utf-8")
    with pytest.raises(ModelError, match="the embedding 50 rows"):
        load(folder)


def test_a_tokenizer_of_special_tokens_only_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    folder = save_cross_encoder(tmp_path / "mute")
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    Tokenizer(models.WordPiece(vocab=special, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))  # noqa: S106
    with pytest.raises(ModelError, match="tokenizer has 5 tokens"):
        load(folder)


def test_a_causal_language_model_needs_answers_and_a_classifier_none(tmp_path: Path, teacher_folder: Path) -> None:
    causal = save_decoder_teacher(tmp_path / "causal", causal=True, steps=0)
    with pytest.raises(ModelError, match=r"causal language model.*give teacher\.answers and teacher\.template"):
        load(causal)
    with pytest.raises(ModelError, match=r"teacher\.answers is for causal language models"):
        load_cross_encoder(
            teacher_folder, dtype=torch.float32, device=torch.device("cpu"), head=answers_head("yes", "no")
        )
    classifier = save_decoder_teacher(tmp_path / "classifier", causal=False, steps=0)
    load(classifier)
