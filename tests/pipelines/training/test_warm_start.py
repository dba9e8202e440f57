"""A student cut from an encoder follows its hidden states before anything else.

Why: a state matched to the wrong layer, padding that counts, or a head that moves would still bring the loss down.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learners_for_tests import CPU
from tiny import ASPECTS, FILLER, TOPICS, save_encoder, tiny_spec

from pipelines.errors import DataError, ModelError
from pipelines.spec_sections.curriculum import WarmStartSpec
from pipelines.student.model import DualEncoder, load_student
from pipelines.training.warm_start import layer_map, warm_start

LAYERS = 5
SPEC = WarmStartSpec(steps=30, texts_per_step=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("deep") / "encoder", num_hidden_layers=LAYERS)


def texts(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = (*TOPICS, *ASPECTS, *FILLER)
    return [" ".join(rng.choice(words, size=rng.integers(2, 14))) for _ in range(count)]


def load(folder: Path, num_layers: int | None, **student: Any) -> DualEncoder:
    spec = tiny_spec(student={"num_layers": num_layers} | student).student
    return load_student(folder, spec, dropout=0.0, device=CPU)


def warmed(student: DualEncoder, source: DualEncoder, spec: WarmStartSpec = SPEC, **options: Any) -> list[float]:
    losses: list[float] = []
    warm_start(
        student,
        source.backbone,
        options.pop("texts", texts(0, 40)),
        spec,
        seed=7,
        dtype="fp32",
        on_step=lambda step, loss: losses.append(loss),
        **options,
    )
    return losses


def weights(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


@given(k=st.integers(1, 24), beyond=st.integers(1, 24))
def test_the_map_is_even_rises_and_ends_at_the_last(k: int, beyond: int) -> None:
    pairs = layer_map(k, k + beyond)
    assert [mine for mine, _ in pairs] == list(range(1, k + 1))
    theirs = [layer for _, layer in pairs]
    assert theirs == [int(np.floor(j * (k + beyond) / k + 0.5 + 1e-9)) for j in range(1, k + 1)]
    assert len(set(theirs)) == k
    assert theirs[-1] == k + beyond


@pytest.mark.parametrize("tokens_per_batch", [16384, 24])
def test_the_first_gradient_is_the_formulas(folder: Path, tokens_per_batch: int) -> None:
    """Written out text by text, without padding or batches; a step that is cut into small ones has the same."""
    student, source = load(folder, 2), load(folder, None)
    reference = load(folder, 2)
    of_step = texts(3, 6)
    squares: dict[int, list[torch.Tensor]] = {1: [], 2: []}
    norms: dict[int, list[torch.Tensor]] = {1: [], 2: []}
    for text in of_step:
        ids = torch.tensor([reference.tokenizer(text)["input_ids"]])
        mine = reference.backbone(input_ids=ids, output_hidden_states=True).hidden_states
        with torch.no_grad():
            theirs = source.backbone(input_ids=ids, output_hidden_states=True).hidden_states
        for own, followed in ((1, 3), (2, 5)):  # round(1 * 5 / 2) = 3
            squares[own].append((mine[own] - theirs[followed])[0].square().sum(dim=1))
            norms[own].append(theirs[followed][0].square().sum(dim=1))
    loss = torch.stack([torch.cat(squares[j]).mean() / torch.cat(norms[j]).mean() for j in (1, 2)]).mean()
    loss.backward()
    grads: dict[str, torch.Tensor] = {}
    for name, parameter in student.backbone.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: grads.update({name: p.grad.clone()}))
    one_step = WarmStartSpec(steps=1, texts_per_step=6)
    (found,) = warmed(student, source, one_step, texts=of_step, tokens_per_batch=tokens_per_batch)
    assert found == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: p.grad for name, p in reference.backbone.named_parameters() if p.grad is not None}
    assert grads.keys() == expected.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_loss_falls_and_held_out_texts_come_nearer_to_what_the_source_makes_of_them(
    folder: Path, pooling: str
) -> None:
    student, source = load(folder, 2, pooling=pooling), load(folder, None, pooling=pooling)
    held_out = texts(1, 30)
    aim = source.encode(held_out, "document")

    def similarity() -> float:
        return float((student.encode(held_out, "document") * aim).sum(axis=1).mean())

    before = similarity()
    losses = warmed(student, source)
    assert len(losses) == SPEC.steps
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert similarity() > before + 0.05


def test_only_the_backbone_moves(folder: Path) -> None:
    student = load(folder, 2, heads={"dimension": 8, "serve": "interpolated"})
    source = load(folder, None)
    assert student.heads is not None
    frozen = student.backbone.embeddings.word_embeddings.weight
    frozen.requires_grad_(False)
    heads, of_source, embedding = weights(student.heads), weights(source), frozen.clone()
    layers = weights(student.backbone.encoder)
    student.train()
    warmed(student, source, WarmStartSpec(steps=2, texts_per_step=4))
    assert weights(student.heads) == heads
    assert weights(source) == of_source
    assert torch.equal(frozen, embedding)
    assert weights(student.backbone.encoder) != layers
    assert student.training
    assert all(p.grad is None for p in (*student.parameters(), *source.parameters()))


def test_the_same_arguments_give_the_same_weights(folder: Path) -> None:
    """Whatever the global generator did before, dropout or not."""
    source = load(folder, None)
    found = []
    for seed in (1, 2):
        student = load_student(folder, tiny_spec(student={"num_layers": 2}).student, dropout=0.3, device=CPU)
        torch.manual_seed(seed)
        warmed(student, source, WarmStartSpec(steps=5, texts_per_step=4))
        found.append(weights(student))
    assert found[0] == found[1]


def test_every_text_has_its_turn_before_one_comes_twice(folder: Path) -> None:
    student, source = load(folder, 2), load(folder, None)
    seen: list[str] = []
    tokenize = student.tokenize
    student.tokenize = lambda batch, kind: (seen.extend(batch), tokenize(batch, kind))[1]  # type: ignore[func-returns-value, method-assign]
    corpus = [f"{topic} {aspect}" for topic in TOPICS[:5] for aspect in ASPECTS[:2]]
    warmed(student, source, WarmStartSpec(steps=5, texts_per_step=4), texts=corpus)
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(corpus)
    assert seen[:10] != seen[10:]


@pytest.mark.parametrize("family", ["DistilBert", "DebertaV2", "ModernBert", "Roberta", "Electra"])
def test_any_family_of_encoders_is_followed(family: str, folder: Path, tmp_path: Path) -> None:
    """Each lists its states in its own way, before or behind a final norm."""
    import transformers

    shutil.copytree(folder, tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "DistilBert":
        sizes = {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64}
    config = getattr(transformers, f"{family}Config")(vocab_size=200, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():  # as initialised, layers hardly do anything
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(5)
    model.save_pretrained(tmp_path / "encoder")
    student, source = load(tmp_path / "encoder", 2), load(tmp_path / "encoder", None)
    held_out = texts(1, 20)
    aim = source.encode(held_out, "document")
    before = student.encode(held_out, "document")
    losses = warmed(student, source)
    after = student.encode(held_out, "document")
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    assert (after * aim).sum() > (before * aim).sum()


def test_a_student_that_was_not_cut_has_nothing_to_follow(folder: Path) -> None:
    source = load(folder, None)
    with pytest.raises(ModelError, match=f"has {LAYERS} layers and the checkpoint {LAYERS}; set student.num_layers"):
        warmed(load(folder, None), source)
    with pytest.raises(DataError, match="no texts"):
        warmed(load(folder, 2), source, texts=[])


def test_an_encoder_of_another_width_cannot_be_followed(folder: Path, tmp_path: Path) -> None:
    wide = save_encoder(tmp_path / "wide", num_hidden_layers=6, hidden_size=48)
    with pytest.raises(ModelError, match=r"32 dimensions, .* 48"):
        warmed(load(folder, 2), load(wide, None))
