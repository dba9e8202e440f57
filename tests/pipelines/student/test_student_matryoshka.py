"""Matryoshka prefixes: what training cuts is what a user cuts, and what the invariance loss asks for is about search.

A prefix that is cut or normalised otherwise in training than at query time is trained for nothing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_encoder
from torch import Tensor

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError, ObjectiveError
from pipelines.spec import StudentSpec
from pipelines.student.export import export_student
from pipelines.student.matryoshka import configuration_invariance_loss, truncated
from pipelines.student.model import DualEncoder, load_student

DIMENSIONS = [16, 4]


def load(folder: Path, **changes: Any) -> DualEncoder:
    settings: dict[str, Any] = {"model": {"id": "encoder"}, "max_length": 24, "matryoshka": {"dimensions": DIMENSIONS}}
    torch.manual_seed(0)
    spec = StudentSpec.model_validate(settings | changes)
    return load_student(folder, spec, dropout=0.0, device=torch.device("cpu"))


def scores_of(queries: Tensor, documents: Tensor, dimension: int) -> Tensor:
    return truncated(queries, dimension, normalize=True) @ truncated(documents, dimension, normalize=True).T


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("heads", [None, {"serve": "contrastive", "dimension": 24}])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_sentence_transformers_cuts_the_exported_student_to_the_same_vectors(
    encoder_folder: Path, dataset: Dataset, tmp_path: Path, normalize: bool, heads: Any, dimension: int
) -> None:
    from sentence_transformers import SentenceTransformer

    student = load(encoder_folder, normalize=normalize, heads=heads)
    path = export_student(student, tmp_path / "student")
    theirs = SentenceTransformer(str(path), truncate_dim=dimension, device="cpu")
    queries, documents = dataset.queries["text"].to_pylist(), dataset.passages()
    ours_queries, ours_documents = (
        truncated(torch.from_numpy(student.encode(texts, kind)), dimension, normalize=normalize)
        for texts, kind in ((queries, "query"), (documents, "document"))
    )
    scale = max(1.0, float(ours_documents.abs().max()))
    encoded = [
        theirs.encode_query(queries, normalize_embeddings=normalize),
        theirs.encode_document(documents, normalize_embeddings=normalize),
    ]
    for found, expected in zip(encoded, (ours_queries, ours_documents), strict=True):
        assert found.shape[1] == dimension
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6 * scale)
    # And without asking for the norm: the exported similarity is the cosine, so the scores are the same.
    similarity = theirs.similarity(theirs.encode_query(queries), theirs.encode_document(documents))
    torch.testing.assert_close(similarity, ours_queries @ ours_documents.T, rtol=1e-5, atol=2e-6 * scale**2)


def test_the_export_names_the_dimensions_where_servers_look(encoder_folder: Path, tmp_path: Path) -> None:
    path = export_student(load(encoder_folder), tmp_path / "student")
    assert json.loads((path / "config.json").read_text(encoding="utf-8"))["matryoshka_dimensions"] == [32, 16, 4]


def test_a_student_that_was_not_trained_for_prefixes_does_not_claim_those_of_its_checkpoint(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "encoder", matryoshka_dimensions=[32, 16])
    assert "matryoshka_dimensions" in (folder / "config.json").read_text(encoding="utf-8")
    path = export_student(load(folder, matryoshka=None), tmp_path / "student")
    assert "matryoshka_dimensions" not in (path / "config.json").read_text(encoding="utf-8")


def test_a_truncated_embedding_is_its_prefix() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.manual_seed(0)), dim=1)
    plain = truncated(embeddings, 3, normalize=False)
    assert torch.equal(plain, embeddings[:, :3])
    unit = truncated(embeddings, 3, normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(unit * plain.norm(dim=1, keepdim=True), plain)
    torch.testing.assert_close(truncated(embeddings, 8, normalize=True), embeddings)


@pytest.mark.parametrize("dimension", [0, -1, 9])
def test_a_prefix_that_does_not_exist_is_refused(dimension: int) -> None:
    with pytest.raises(ObjectiveError, match=rf"8 dimensions cannot be cut to {dimension}"):
        truncated(torch.ones(2, 8), dimension, normalize=True)


@pytest.mark.parametrize("heads", [None, {"serve": "contrastive"}])
@pytest.mark.parametrize("longest", [32, 40])
def test_a_prefix_no_shorter_than_the_vector_is_refused_with_field_and_value(
    encoder_folder: Path, heads: Any, longest: int
) -> None:
    # Only the checkpoint knows how long its vectors are, so the spec alone could not refuse it.
    with pytest.raises(ModelError, match=rf"student\.matryoshka\.dimensions has {longest}.* 32 dimensions"):
        load(encoder_folder, matryoshka={"dimensions": [longest, 4]}, heads=heads)


def test_the_invariance_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    full, narrow = torch.randn(3, 4), [torch.randn(3, 4) for _ in range(2)]
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, True, True]])
    expected = 0.0
    for scores in narrow:
        differences = [
            (float(scores[i, j]) - float(full[i, j])) ** 2 for i in range(3) for j in range(4) if bool(mask[i, j])
        ]
        expected += sum(differences) / len(differences) / len(narrow)
    assert float(configuration_invariance_loss(narrow, full, mask)) == pytest.approx(expected, rel=1e-6)
    everything = sum(float((scores - full).square().mean()) for scores in narrow) / 2
    assert float(configuration_invariance_loss(narrow, full)) == pytest.approx(everything, rel=1e-6)


def test_the_full_vector_is_the_teacher_and_learns_nothing() -> None:
    full, narrow = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    configuration_invariance_loss([narrow], full).backward()  # type: ignore[no-untyped-call]
    assert full.grad is None
    assert narrow.grad is not None
    torch.testing.assert_close(narrow.grad, 2 * (narrow - full).detach() / 12)


def test_padding_has_no_influence_on_the_invariance_loss() -> None:
    torch.manual_seed(0)
    full, narrow = torch.randn(2, 3), torch.randn(2, 3)
    padded_full = torch.cat([full, torch.full((2, 1), float("nan"))], dim=1)
    padded = torch.cat([narrow, torch.full((2, 1), float("nan"))], dim=1).requires_grad_()
    mask = torch.tensor([[True, True, True, False]] * 2)
    loss = configuration_invariance_loss([padded], padded_full, mask)
    torch.testing.assert_close(loss, configuration_invariance_loss([narrow], full))
    loss.backward()  # type: ignore[no-untyped-call]
    assert padded.grad is not None
    assert torch.equal(padded.grad[:, 3], torch.zeros(2))
    assert torch.isfinite(padded.grad).all()


def test_a_batch_of_padding_alone_is_zero_with_zero_gradient() -> None:
    narrow = torch.randn(2, 3, requires_grad=True)
    loss = configuration_invariance_loss([narrow], torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert narrow.grad is not None
    assert torch.equal(narrow.grad, torch.zeros(2, 3))


def test_large_scores_and_half_precision_stay_finite() -> None:
    full = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16)
    narrow = (-full).requires_grad_()
    loss = configuration_invariance_loss([narrow], full)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4 * float(full[0, 0]) ** 2, rel=1e-6)
    assert narrow.grad is not None
    assert torch.isfinite(narrow.grad).all()


@pytest.mark.parametrize(
    ("narrow", "mask", "message"),
    [
        ([], None, "no truncated dimension"),
        ([torch.zeros(2, 4)], None, r"scores_by_dimension \(2, 4\) and full_scores \(2, 3\)"),
        ([torch.zeros(2, 3)], torch.ones(3, dtype=torch.bool), r"mask \(3,\)"),
        ([torch.zeros(2, 3)], torch.ones(2, 3), "mask must be bool, got torch.float32"),
        ([torch.full((2, 3), float("nan"))], None, "NaN"),
    ],
)
def test_impossible_inputs_of_the_invariance_loss_are_refused(
    narrow: list[Tensor], mask: Tensor | None, message: str
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        configuration_invariance_loss(narrow, torch.zeros(2, 3), mask)


def test_training_brings_the_prefixes_to_the_similarities_of_the_full_vector(
    encoder_folder: Path, dataset: Dataset
) -> None:
    """What the loss is for; and it must not get there by making the full vectors poorer."""
    student = load(encoder_folder)
    queries, documents = dataset.queries["text"].to_pylist()[:16], dataset.passages()[:30]

    def scores() -> tuple[list[Tensor], Tensor]:
        left, right = student.embed(queries, "query"), student.embed(documents, "document")
        return [scores_of(left, right, dimension) for dimension in DIMENSIONS], left @ right.T

    with torch.no_grad():
        narrow, before = scores()
        start = float(configuration_invariance_loss(narrow, before))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(40):
        narrow, full = scores()
        keep = (full - before).square().mean()  # stands for the job's objective, which holds the full vector
        loss = configuration_invariance_loss(narrow, full) + 10 * keep
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        narrow, full = scores()
    assert float(configuration_invariance_loss(narrow, full)) < 0.25 * start
    assert float((full - before).square().mean()) < 0.1 * float(before.var())
