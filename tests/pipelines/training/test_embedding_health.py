"""embedding_health: golden numbers, its formulas in numpy, its edges, and what no turn of the space may change."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipelines.errors import ObjectiveError
from pipelines.training.embedding_health import embedding_health

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "uniformity_alignment.json").read_text(encoding="utf-8"))[
    "cases"
]
NONE = torch.full((2,), -1)


def drawn(rows: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(seed))


def plain(queries: Tensor, documents: Tensor, positive: Tensor) -> dict[str, float]:
    """The same from the formulas, in float64, with loops."""
    q, d = (x.double().numpy() for x in (queries, documents))
    q, d = q / np.linalg.norm(q, axis=1, keepdims=True), d / np.linalg.norm(d, axis=1, keepdims=True)
    kernel = [math.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(d) for j, b in enumerate(d) if i != j]
    pairs = [((q[i] - d[p]) ** 2).sum() for i, p in enumerate(positive.tolist()) if p >= 0]
    singular = np.linalg.svd(d, compute_uv=False)
    shares = [s for s in singular / singular.sum() if s > 0]
    return {
        "uniformity": math.log(np.mean(kernel)),
        "alignment": float(np.mean(pairs)),
        "effective_rank": math.exp(-sum(s * math.log(s) for s in shares)),
        "modality_gap": float(np.linalg.norm(q.mean(axis=0) - d.mean(axis=0))),
    }


@pytest.mark.parametrize("term", ["uniform_image", "uniform_text", "align"])
def test_uniformity_and_alignment_have_the_golden_values(term: str) -> None:
    (case,) = [c for c in GOLDEN if c["name"] == f"{term}, squared_euclidean"]
    image, text = (torch.tensor(case["inputs"][side]) for side in ("image", "text"))
    queries, documents = (text, image) if term == "uniform_image" else (image, text)
    figures = embedding_health(queries, documents, torch.arange(len(documents)))
    name = "alignment" if term == "align" else "uniformity"
    assert figures[name] == pytest.approx(case["expected"]["loss"], rel=1e-4)


def test_all_four_are_their_formulas() -> None:
    queries, documents = drawn(5, 8, seed=1), drawn(12, 8, seed=2)
    positive = torch.tensor([3, -1, 0, 11, 3])
    assert embedding_health(queries, documents, positive) == pytest.approx(
        plain(queries, documents, positive), rel=1e-4
    )


@pytest.mark.parametrize(("rows", "dimensions"), [(1, 4), (3, 8), (8, 3), (6, 6)])
def test_orthogonal_directions_of_equal_strength_each_count_once(rows: int, dimensions: int) -> None:
    """Roy and Vetterli's rank of an orthonormal matrix is its rank: here the fewer of documents and dimensions."""
    documents = torch.eye(max(rows, dimensions))[:rows, :dimensions]
    documents = documents[documents.any(dim=1)]
    figures = embedding_health(documents, documents, torch.arange(len(documents)))
    assert figures["effective_rank"] == pytest.approx(min(rows, dimensions), rel=1e-5)
    assert figures["alignment"] == figures["modality_gap"] == 0


def test_a_collapsed_space_shows_in_three_figures_while_alignment_looks_perfect() -> None:
    """That is why alignment alone is no diagnosis: the best one belongs to the worst space."""
    same = drawn(1, 16, seed=3).expand(6, 16)
    figures = embedding_health(same[:2], same, torch.tensor([0, 1]))
    assert figures["uniformity"] == pytest.approx(0, abs=1e-5)
    assert figures["effective_rank"] == pytest.approx(1, abs=1e-2)
    assert figures["alignment"] == pytest.approx(0, abs=1e-6)
    spread = embedding_health(drawn(2, 16, seed=4), drawn(6, 16, seed=5), NONE)
    assert spread["uniformity"] < -2
    assert spread["effective_rank"] > 5


def test_two_sides_apart_are_two_apart() -> None:
    """The largest gap there is: all queries one way, all documents the other."""
    one = drawn(1, 4, seed=6)
    assert embedding_health(one.expand(2, 4), -one.expand(3, 4), NONE)["modality_gap"] == pytest.approx(2)


def test_what_is_undefined_is_left_out() -> None:
    """A 0 in a curve would read as the best alignment, or as collapse."""
    queries, documents = drawn(2, 4, seed=7), drawn(3, 4, seed=8)
    assert set(embedding_health(queries, documents, NONE)) == {"uniformity", "effective_rank", "modality_gap"}
    one = embedding_health(queries, documents[:1], torch.tensor([0, -1]))
    assert set(one) == {"alignment", "effective_rank", "modality_gap"}
    assert one["effective_rank"] == pytest.approx(1)
    assert embedding_health(queries, documents[:0], NONE) == {}
    assert set(embedding_health(queries[:0], documents, NONE[:0])) == {"uniformity", "effective_rank"}


def test_a_vector_of_length_zero_takes_no_part() -> None:
    """It has no direction: dividing it by its length would put a vector inside the sphere among those upon it."""
    queries, documents = drawn(3, 4, seed=9), drawn(4, 4, seed=10)
    positive = torch.tensor([0, 2, 4])
    without = embedding_health(queries[:2], documents, positive[:2])
    zero = torch.zeros(1, 4)
    assert embedding_health(queries, torch.cat([documents, zero]), positive)["alignment"] == without["alignment"]
    padded = embedding_health(torch.cat([queries[:2], zero]), torch.cat([documents, zero]), torch.tensor([0, 2, 1]))
    assert padded == pytest.approx(without, rel=1e-5)
    assert embedding_health(zero, zero, torch.zeros(1, dtype=torch.int64)) == {}


@pytest.mark.parametrize("length", [1e-38, 1e-25, 1e25, 1e38])
def test_lengths_whose_squares_leave_fp32_change_nothing(length: float) -> None:
    queries, documents = drawn(2, 4, seed=11), drawn(5, 4, seed=12)
    unit = torch.nn.functional.normalize
    positive = torch.tensor([1, 4])
    stretched = embedding_health(unit(queries) * length, unit(documents) * length, positive)
    assert stretched == pytest.approx(embedding_health(queries, documents, positive), rel=1e-3)


def test_bf16_is_computed_in_fp32_even_under_autocast() -> None:
    """A step's vectors come from autocast; in bf16 the distance of near neighbours would be noise."""
    queries, documents = drawn(3, 32, seed=13).bfloat16(), drawn(9, 32, seed=14).bfloat16()
    positive = torch.tensor([0, -1, 5])
    expected = plain(queries.float(), documents.float(), positive)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embedding_health(queries, documents, positive) == pytest.approx(expected, rel=1e-4)


def test_no_gradient_is_kept() -> None:
    queries = drawn(2, 4, seed=15).requires_grad_()
    embedding_health(queries, queries.detach(), NONE)
    assert queries.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_vector_is_an_error_and_names_its_row(bad: float) -> None:
    documents = drawn(3, 4, seed=16)
    documents[1, 2] = bad
    with pytest.raises(ObjectiveError, match="1 of 3 documents are not finite, first 1"):
        embedding_health(documents[:1], documents, NONE[:1])


def test_shapes_that_disagree_are_refused() -> None:
    two, three = drawn(2, 4, seed=17), drawn(3, 5, seed=18)
    with pytest.raises(ObjectiveError, match=r"queries \[2, 4\] and documents \[3, 5\]"):
        embedding_health(two, three, NONE)
    with pytest.raises(ObjectiveError, match=r"positive_document \[1\] for 2 queries"):
        embedding_health(two, two, NONE[:1])
    with pytest.raises(ObjectiveError, match="from 0 to 2, there are 2 documents"):
        embedding_health(two, two, torch.tensor([0, 2]))


@given(rows=st.integers(1, 6), documents=st.integers(2, 12), dimensions=st.integers(2, 12), seed=st.integers(0, 9999))
def test_the_figures_stay_in_their_ranges_and_do_not_see_turns_or_lengths(
    rows: int, documents: int, dimensions: int, seed: int
) -> None:
    """What they mean belongs to the angles between vectors, so a rotation or a rescaled encoder changes nothing."""
    left, right = drawn(rows, dimensions, seed), drawn(documents, dimensions, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randint(-1, documents, (rows,), generator=generator)
    figures = embedding_health(left, right, positive)
    assert -8 - 1e-4 <= figures["uniformity"] <= 1e-5
    assert 1 - 1e-4 <= figures["effective_rank"] <= min(documents, dimensions) * (1 + 1e-4)
    assert 0 <= figures["modality_gap"] <= 2 + 1e-5
    assert ("alignment" in figures) == bool((positive >= 0).any())
    assert 0 <= figures.get("alignment", 0) <= 4 + 1e-5

    turn = torch.linalg.qr(drawn(dimensions, dimensions, seed + 2)).Q
    lengths = 0.1 + 10 * torch.rand(documents, 1, generator=generator)
    turned = embedding_health(3 * left @ turn, lengths * right @ turn, positive)
    assert turned == pytest.approx(figures, rel=1e-3, abs=1e-4)
