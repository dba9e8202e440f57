"""Dual heads: what is trained is what is served, and what is served needs nothing of ours to be loaded.

The interpolated score is a promise to the index: one inner product of one vector per text. If the folded vector, the
two views and the exported matrix disagreed by a factor or a norm, training would still run and search be a little
worse for ever.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.candidates.miner import embed_corpus
from pipelines.corpus.dataset import Dataset
from pipelines.errors import ModelError, ObjectiveError
from pipelines.spec import DualHeadSpec, ModelSpec, StudentSpec
from pipelines.student.export import export_student
from pipelines.student.heads import interpolated_probabilities
from pipelines.student.model import DualEncoder, load_student

QUERIES = ["what is the cause of heart risk", "lung treatment", "brain"]
DOCUMENTS = ["heart cause often", "lung treatment mild care", "nerve test study", "skin"]
ALPHA, BETA = 0.3, 0.5
Serve = Literal["interpolated", "contrastive"]
both_ways = pytest.mark.parametrize("serve", ["interpolated", "contrastive"])
every_size = pytest.mark.parametrize("dimension", [None, 8, 40])
normalized_or_not = pytest.mark.parametrize("normalize", [True, False])


def load(folder: Path, *, seed: int = 0, normalize: bool = True, **heads: Any) -> DualEncoder:
    torch.manual_seed(seed)
    spec = StudentSpec.model_validate(
        {
            "model": {"id": "encoder"},
            "max_length": 24,
            "normalize": normalize,
            "query_prompt": "study: ",
            "heads": {"alpha": ALPHA, "beta": BETA, **heads} if heads else None,
        }
    )
    return load_student(folder, spec, dropout=0.0, device=torch.device("cpu"))


def learn(student: DualEncoder, steps: int = 5) -> None:
    """Each head its own, contradictory lesson: which document is best."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    student.train()
    for _ in range(steps):
        queries, documents = student.embed_views(QUERIES, "query"), student.embed_views(DOCUMENTS, "document")
        by_label = queries.contrastive @ documents.contrastive.T / 0.05
        by_teacher = queries.distillation @ documents.distillation.T / 0.05
        loss = torch.nn.functional.cross_entropy(by_label, torch.tensor([0, 1, 2]))
        loss = loss + torch.nn.functional.cross_entropy(by_teacher, torch.tensor([3, 0, 1]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    student.eval()


def interpolated(student: DualEncoder) -> Tensor:
    """alpha s_c + (1 - alpha) s_d / beta from the two training views."""
    queries, documents = student.embed_views(QUERIES, "query"), student.embed_views(DOCUMENTS, "document")
    contrastive = queries.contrastive @ documents.contrastive.T
    return ALPHA * contrastive + (1 - ALPHA) * (queries.distillation @ documents.distillation.T) / BETA


@every_size
@normalized_or_not
@pytest.mark.parametrize("training", [True, False])
def test_the_served_score_is_the_interpolated_score(
    encoder_folder: Path, dimension: int | None, normalize: bool, training: bool
) -> None:
    student = load(encoder_folder, normalize=normalize, dimension=dimension)
    learn(student)  # away from the identity, or equal heads could be swapped unnoticed
    student.train(training)
    with torch.set_grad_enabled(training):
        served = student.embed(QUERIES, "query") @ student.embed(DOCUMENTS, "document").T
        expected = interpolated(student)
    assert expected.std() > 1e-2
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-6 * max(1.0, largest))


def test_the_served_score_is_the_interpolated_score_under_autocast(encoder_folder: Path) -> None:
    # bf16 keeps 8 bits: the heads would lose the identity that they start from, and the two sides would part.
    student = load(encoder_folder, serve="interpolated")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        queries, documents = student.embed_views(QUERIES, "query"), student.embed_views(DOCUMENTS, "document")
    assert {queries.served.dtype, queries.contrastive.dtype, queries.distillation.dtype} == {torch.float32}
    scores = ALPHA * queries.contrastive @ documents.contrastive.T
    scores = scores + (1 - ALPHA) * (queries.distillation @ documents.distillation.T) / BETA
    torch.testing.assert_close(queries.served @ documents.served.T, scores, rtol=0, atol=1e-6)


@both_ways
@normalized_or_not
def test_training_starts_from_the_pre_trained_geometry(encoder_folder: Path, serve: Serve, normalize: bool) -> None:
    plain = load(encoder_folder, normalize=normalize)
    student = load(encoder_folder, normalize=normalize, serve=serve)
    with torch.no_grad():
        before = plain.embed(QUERIES, "query") @ plain.embed(DOCUMENTS, "document").T
        served = student.embed(QUERIES, "query") @ student.embed(DOCUMENTS, "document").T
    # Without a norm to take it out, the two identities add up to this factor, the same for all pairs.
    factor = 1.0 if normalize or serve == "contrastive" else ALPHA + (1 - ALPHA) / BETA
    torch.testing.assert_close(served, before * factor, rtol=1e-5, atol=1e-6)
    assert student.heads is not None
    assert torch.equal(student.heads.contrastive.weight, torch.eye(32)), "a rotation would do, but not say so"
    assert torch.equal(student.heads.distillation.weight, torch.eye(32))


def test_heads_of_another_size_start_orthogonal_and_different(encoder_folder: Path) -> None:
    short, long = (load(encoder_folder, dimension=size).heads for size in (8, 40))
    assert short is not None
    assert long is not None
    for head in (short.contrastive.weight, short.distillation.weight):
        torch.testing.assert_close(head @ head.T, torch.eye(8), rtol=0, atol=1e-5)
    for head in (long.contrastive.weight, long.distillation.weight):  # nothing of the pooled vector is lost
        torch.testing.assert_close(head.T @ head, torch.eye(32), rtol=0, atol=1e-5)
    assert not torch.allclose(short.contrastive.weight, short.distillation.weight, atol=1e-2)


def test_the_seed_decides_where_the_heads_start(encoder_folder: Path) -> None:
    # A job that starts again after a crash must find the student it mined with.
    first, again, other = (load(encoder_folder, seed=seed, dimension=8) for seed in (1, 1, 2))
    assert first.encode(QUERIES, "query").tobytes() == again.encode(QUERIES, "query").tobytes()
    assert np.abs(first.encode(QUERIES, "query") - other.encode(QUERIES, "query")).max() > 1e-2


def test_without_heads_the_three_views_are_one_tensor(encoder_folder: Path) -> None:
    student = load(encoder_folder)
    views = student.embed_views(QUERIES, "query")
    assert views.served is views.contrastive
    assert views.served is views.distillation
    assert not [name for name in student.state_dict() if name.startswith("heads")], "old snapshots must still load"


@normalized_or_not
def test_when_one_head_is_served_each_is_normalised_by_itself(encoder_folder: Path, normalize: bool) -> None:
    student = load(encoder_folder, normalize=normalize, serve="contrastive", dimension=8)
    learn(student)
    views = student.embed_views(QUERIES, "query")
    assert views.served is views.contrastive
    assert views.contrastive.shape == views.distillation.shape == (3, 8)
    assert (views.contrastive - views.distillation).abs().max() > 1e-2
    for view in (views.contrastive, views.distillation):
        assert torch.allclose(view.norm(dim=1), torch.ones(3), atol=1e-5) == normalize


@pytest.mark.parametrize(
    ("serve", "dimension", "length"),
    [("interpolated", None, 64), ("interpolated", 8, 16), ("contrastive", None, 32), ("contrastive", 8, 8)],
)
def test_the_dimension_is_that_of_the_served_vector(
    encoder_folder: Path, serve: Serve, dimension: int | None, length: int
) -> None:
    student = load(encoder_folder, serve=serve, dimension=dimension)
    assert student.dimension == length
    assert student.encode([], "query").shape == (0, length)
    vectors = student.encode(QUERIES, "query")
    assert vectors.shape == (3, length)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(vectors, student.embed_views(QUERIES, "query").served.numpy(), atol=1e-6)


@both_ways
def test_gradient_reaches_both_heads_and_the_encoder_through_the_views(encoder_folder: Path, serve: Serve) -> None:
    student = load(encoder_folder, serve=serve)
    assert student.heads is not None
    for view, head in (("contrastive", student.heads.contrastive), ("distillation", student.heads.distillation)):
        student.zero_grad()
        queries, documents = student.embed_views(QUERIES, "query"), student.embed_views(DOCUMENTS, "document")
        scores = getattr(queries, view) @ getattr(documents, view).T
        torch.nn.functional.cross_entropy(scores / 0.05, torch.tensor([0, 1, 2])).backward()  # type: ignore[no-untyped-call]
        assert head.weight.grad is not None
        assert head.weight.grad.norm() > 1e-3
        assert student.backbone.embeddings.word_embeddings.weight.grad.norm() > 1e-4


def test_when_one_head_is_served_the_losses_meet_in_the_encoder_only(encoder_folder: Path) -> None:
    """What two heads are for: neither loss pulls at the other's head."""
    student = load(encoder_folder, serve="contrastive")
    assert student.heads is not None
    student.embed_views(QUERIES, "query").distillation.square().sum(dim=0)[0].backward()  # type: ignore[no-untyped-call]
    assert student.heads.contrastive.weight.grad is None
    assert student.heads.distillation.weight.grad is not None


def test_a_student_learns_what_its_two_teachers_say_of_the_same_texts(encoder_folder: Path) -> None:
    """The lessons of `learn` contradict each other; one head could not follow both."""
    student = load(encoder_folder, serve="interpolated")
    learn(student, steps=60)
    with torch.no_grad():
        queries, documents = student.embed_views(QUERIES, "query"), student.embed_views(DOCUMENTS, "document")
    assert (queries.contrastive @ documents.contrastive.T).argmax(dim=1).tolist() == [0, 1, 2]
    assert (queries.distillation @ documents.distillation.T).argmax(dim=1).tolist() == [3, 0, 1]


@both_ways
@every_size
@normalized_or_not
def test_sentence_transformers_loads_the_export_and_gives_the_served_vectors(
    encoder_folder: Path, dataset: Dataset, tmp_path: Path, serve: Serve, dimension: int | None, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    student = load(encoder_folder, serve=serve, dimension=dimension, normalize=normalize)
    learn(student)
    path = export_student(student, tmp_path / "student")
    theirs = SentenceTransformer(str(path), device="cpu")
    theirs.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    queries, documents = dataset.queries["text"].to_pylist(), [*dataset.passages(), "heart " * 100]
    ours_queries, ours_documents = student.encode(queries, "query"), student.encode(documents, "document")
    scale = float(np.abs(ours_documents).max())  # vectors without a norm are larger than 1
    for model in (theirs, again):
        np.testing.assert_allclose(model.encode_query(queries), ours_queries, rtol=0, atol=1e-6 * max(1, scale))
        np.testing.assert_allclose(model.encode_document(documents), ours_documents, rtol=0, atol=1e-6 * max(1, scale))
        assert model.get_embedding_dimension() == student.dimension


@both_ways
def test_the_export_needs_no_code_but_sentence_transformers(encoder_folder: Path, tmp_path: Path, serve: Serve) -> None:
    path = export_student(load(encoder_folder, serve=serve), tmp_path / "student")
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    assert [module["type"].rsplit(".", 1)[-1] for module in modules] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    dense = json.loads((path / "2_Dense" / "config.json").read_text(encoding="utf-8"))
    assert dense["activation_function"].startswith("torch.nn."), "anything else is not trusted, and becomes a Tanh"
    assert dense["bias"] is False
    assert not [*path.rglob("*.py"), *path.rglob("*.bin")]


def test_the_head_that_is_not_served_is_not_exported(encoder_folder: Path, tmp_path: Path) -> None:
    student = load(encoder_folder, serve="contrastive", dimension=8)
    learn(student)
    assert student.heads is not None
    weights = load_file(export_student(student, tmp_path / "student") / "2_Dense" / "model.safetensors")
    assert list(weights) == ["linear.weight"]
    assert torch.equal(weights["linear.weight"], student.heads.contrastive.weight)


@both_ways
def test_a_snapshot_restores_both_heads(encoder_folder: Path, tmp_path: Path, serve: Serve) -> None:
    # As the rounds of a job keep it; of `contrastive` too, whose other head still teaches in the next round.
    student = load(encoder_folder, seed=1, serve=serve, dimension=8)
    learn(student)
    save_file({name: value.contiguous().clone() for name, value in student.state_dict().items()}, tmp_path / "s")
    restored = load(encoder_folder, seed=2, serve=serve, dimension=8)
    restored.load_state_dict(load_file(tmp_path / "s"))
    with torch.no_grad():
        ours, theirs = student.embed_views(QUERIES, "query"), restored.embed_views(QUERIES, "query")
    assert torch.equal(ours.served, theirs.served)
    assert torch.equal(ours.distillation, theirs.distillation)


def test_exact_search_over_the_corpus_uses_the_served_vectors(encoder_folder: Path, dataset: Dataset) -> None:
    """Mining, evaluation and the report all go this way."""
    student = load(encoder_folder, dimension=8)
    learn(student)
    rows, scores = embed_corpus(student, dataset).search(QUERIES, 10)
    with torch.no_grad():
        queries = student.embed_views(QUERIES, "query")
        documents = student.embed_views(dataset.passages(), "document")
    expected = ALPHA * queries.contrastive @ documents.contrastive.T
    expected = expected + (1 - ALPHA) * (queries.distillation @ documents.distillation.T) / BETA
    best = expected.topk(10, dim=1).values
    np.testing.assert_allclose(scores, best.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected.numpy(), rows, axis=1), scores, atol=1e-5)


def test_interpolated_probabilities_are_a_distribution_between_both_heads() -> None:
    torch.manual_seed(0)
    contrastive, distillation = torch.randn(4, 6) * 10, torch.randn(4, 6) * 10
    mixed = interpolated_probabilities(contrastive, distillation, alpha=0.2, beta=2.0)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(4))
    assert torch.equal(interpolated_probabilities(contrastive, distillation, alpha=1.0), contrastive.softmax(dim=1))
    sharp = interpolated_probabilities(contrastive, distillation, alpha=0.0, beta=1e-4)
    assert torch.equal(sharp.argmax(dim=1), distillation.argmax(dim=1))
    torch.testing.assert_close(sharp.max(dim=1).values, torch.ones(4))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1\.5"),
        ({"alpha": float("nan")}, "got nan"),
        ({"beta": 0.0}, r"beta must be a positive finite number, got 0\.0"),
    ],
)
def test_an_impossible_interpolation_is_refused(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        interpolated_probabilities(torch.zeros(2, 3), torch.zeros(2, 3), **parameters)


def test_heads_that_score_different_lists_are_refused() -> None:
    with pytest.raises(ObjectiveError, match=r"\(2, 3\) and .* \(2, 4\)"):
        interpolated_probabilities(torch.zeros(2, 3), torch.zeros(2, 4))


def test_an_exported_student_with_heads_is_not_taken_for_its_encoder(encoder_folder: Path, tmp_path: Path) -> None:
    """Without its Dense module it would be another student, and nothing would say so."""
    spec = StudentSpec(model=ModelSpec(id="encoder"), max_length=32, heads=DualHeadSpec())
    student = load_student(encoder_folder, spec, dropout=0.0, device=torch.device("cpu"))
    folder = export_student(student, tmp_path / "student")
    plain = spec.model_copy(update={"heads": None})
    with pytest.raises(ModelError, match=r"Dense module .* without its modules\.json"):
        load_student(folder, plain, dropout=0.0, device=torch.device("cpu"))
    (folder / "modules.json").unlink()
    assert load_student(folder, plain, dropout=0.0, device=torch.device("cpu")).dimension == 32
