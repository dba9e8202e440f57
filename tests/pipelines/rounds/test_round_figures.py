"""The figures of a round against numbers worked out by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.ranked.schema import RANKED_SCHEMA
from pipelines.rounds.figures import Hardness, RoundFigures, hardness, list_overlap, share_kept
from pipelines.training.dev_set import DevSet, dev_measures


def mined(**found: list[str]) -> pa.Table:
    """Query -> doc_ids; those that begin with `+` are judged positives."""
    rows = [
        {
            "query_id": query_id,
            "candidates": [
                {"doc_id": doc_id.lstrip("+"), "relevance": 1 if doc_id.startswith("+") else None} for doc_id in doc_ids
            ],
        }
        for query_id, doc_ids in found.items()
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)


def test_overlap_counts_what_was_there_before_and_no_positive() -> None:
    earlier = [mined(a=["+p", "d1", "d2", "d3", "d4"]), mined(b=["+p", "d5"])]
    later = [mined(a=["+p", "d1", "d2", "d8", "d9"], b=["+p", "d5"], c=["d7"])]
    assert list_overlap(earlier, later) == pytest.approx((2 / 4 + 1) / 2)


def test_lots_without_a_common_query_have_no_overlap() -> None:
    assert list_overlap([mined(a=["d1"])], [mined(b=["d1"])]) is None


def ranked(*lists: list[tuple[float, float | None, int | None]]) -> pa.Table:
    """Each candidate: teacher logit, student score, relevance."""
    fields = ("teacher_logit", "student_score", "relevance")
    rows: list[dict[str, Any]] = [
        {"query_id": f"q{i}", "candidates": [dict(zip(fields, item, strict=True)) for item in items]}
        for i, items in enumerate(lists)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([RANKED_SCHEMA.field("query_id"), RANKED_SCHEMA.field(5)]))


def test_hardness_of_lists() -> None:
    first = [(3.0, 0.5, None), (2.0, 0.75, 1), (1.0, 0.25, 0), (-3.0, None, None)]
    second = [(4.0, None, 1), (0.0, 0.5, None)]
    no_positive = [(1.0, 0.5, None)]
    found = hardness([ranked(first), ranked(second, no_positive)])
    assert found.student_margin == pytest.approx(0.75 - 0.375)
    assert found.ranker_margin == pytest.approx(((2 - 1 / 3) + 4) / 2)
    assert found.ranker_fooled == pytest.approx((1 / 3 + 0) / 2)


def test_nothing_to_measure_is_no_number() -> None:
    assert hardness([ranked([(1.0, None, None)])]) == Hardness(None, None, None)


def test_figures_survive_json() -> None:
    figures = RoundFigures(
        round=1, weights_version=2, student={"nDCG@10": 0.5}, ranker=None, entropy=1.5, list_overlap=None,
        hardness=Hardness(0.1, None, 0.2),
    )  # fmt: skip
    assert RoundFigures.from_dict(figures.to_dict()) == figures


class KnownStudent:
    """Encodes to vectors that are given."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], kind: str) -> np.ndarray:
        assert kind in {"query", "document"}
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


class KnownTexts:
    """A text is its id."""

    def query_text(self, query_id: str) -> str:
        return query_id

    def passage(self, doc_id: str) -> str:
        return doc_id


def test_entropy_is_of_the_best_negatives_alone() -> None:
    vectors = {"q": [1.0], "p": [0.9], "n1": [0.5], "n2": [0.4], "n3": [-5.0]}
    dev = DevSet({"q": {"p": 1, "n1": 0}}, ("p", "n1", "n2", "n3"))
    student: Any = KnownStudent(vectors)
    texts: Any = KnownTexts()
    found = dev_measures(student, texts, dev, negatives=2, temperature=0.1)
    p = np.exp(5) / (np.exp(5) + np.exp(4))
    assert found.entropy == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)), rel=1e-5)
    assert found.quality == {"nDCG@10": 1.0, "RR@10": 1.0, "R@5": 1.0}
    assert found.negatives == {"q": ["n1", "n2"]}


def test_a_share_kept_is_of_what_is_found_now() -> None:
    earlier = {"a": ["d1", "d2"], "gone": ["d1"]}
    assert share_kept(earlier, {"a": ["d1", "d3", "d4", "d5"], "new": ["d1"]}) == pytest.approx(1 / 4)
    assert share_kept(earlier, {"new": ["d1"]}) is None


def test_entropy_of_a_student_that_knows_nothing_is_the_logarithm() -> None:
    dev = DevSet({"q": {"p": 1}}, ("p", "n1", "n2", "n3"))
    student: Any = KnownStudent({name: [0.5] for name in ("q", "p", "n1", "n2", "n3")})
    texts: Any = KnownTexts()
    found = dev_measures(student, texts, dev, negatives=15, temperature=0.05)
    assert found.entropy == pytest.approx(np.log(3))
