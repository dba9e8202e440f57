"""Which negatives an adversarial round works with."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.candidates.negatives import sampled_negatives
from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.objectives.simans import simans_weights
from pipelines.spec import AdversarialSpec


def table(lists: list[list[tuple[str, float | None, int | None]]]) -> pa.Table:
    rows = [
        {
            "query_id": f"q{number}",
            "candidates": [
                {"doc_id": doc, "student_score": score, "bm25_rank": None, "dense_rank": None, "relevance": relevance}
                for doc, score, relevance in items
            ],
        }
        for number, items in enumerate(lists)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)


def drawn(blocks: list[pa.Table], settings: AdversarialSpec, *, count: int, number: int = 0) -> list[list[str]]:
    found = sampled_negatives(blocks, settings, count=count, seed=7, round_number=number)
    return [[item["doc_id"] for item in row["candidates"]] for block in found for row in block.to_pylist()]


NEGATIVES = [(f"n{place}", 1.0 - 0.1 * place, None) for place in range(10)]
LIST = [("p", 0.8, 1), *NEGATIVES]
UNIFORM = AdversarialSpec()


def test_positives_stay_and_negatives_are_drawn_in_mined_order() -> None:
    two = [("p", 0.8, 1), ("r", None, 2), *NEGATIVES, ("zero", 0.1, 0)]
    (found,) = drawn([table([two])], UNIFORM, count=4)
    assert found[:2] == ["p", "r"]
    assert len(found) == 6
    places = [[doc for doc, _, _ in two].index(doc) for doc in found]
    assert places == sorted(places)


def test_uniform_is_uniform() -> None:
    counts = dict.fromkeys([doc for doc, _, _ in NEGATIVES], 0)
    for found in drawn([table([LIST] * 4000)], UNIFORM, count=3):
        for doc in found[1:]:
            counts[doc] += 1
    assert np.allclose(list(counts.values()), 1200, atol=120)  # 4 standard deviations of 29


def test_simans_draws_by_its_weights() -> None:
    settings = AdversarialSpec(sampling="simans", a=20.0, b=-0.1)
    counts = dict.fromkeys([doc for doc, _, _ in NEGATIVES], 0)
    for found in drawn([table([LIST] * 4000)], settings, count=1):
        counts[found[1]] += 1
    expected = simans_weights([score for _, score, _ in NEGATIVES], 0.8, a=20.0, b=-0.1)
    assert np.allclose(np.array(list(counts.values())) / 4000, expected, atol=0.035)


def test_a_positive_that_the_student_did_not_find_takes_the_last_negatives() -> None:
    (found,) = drawn([table([[("p", None, 1), *NEGATIVES]])], AdversarialSpec(sampling="simans"), count=3)
    assert found == ["p", "n7", "n8", "n9"]


def test_negatives_without_a_score_come_in_where_others_are_too_few() -> None:
    items = [("p", 0.5, 1), ("a", 0.4, None), ("b", None, None), ("c", None, None)]
    (found,) = drawn([table([items])], AdversarialSpec(sampling="simans"), count=2)
    assert found == ["p", "a", "b"]


def test_a_short_list_stays_whole_and_an_empty_one_empty() -> None:
    assert drawn([table([LIST[:3], []])], UNIFORM, count=5) == [["p", "n0", "n1"], []]


def test_blocks_do_not_matter_but_round_and_place_do() -> None:
    together = drawn([table([LIST] * 6)], UNIFORM, count=3)
    apart = drawn([table([LIST] * 2), table([LIST] * 4)], UNIFORM, count=3)
    assert together == apart
    assert len({tuple(found) for found in together}) > 1
    assert drawn([table([LIST] * 6)], UNIFORM, count=3, number=1) != together


def test_columns_and_order_are_those_of_the_schema() -> None:
    (found,) = sampled_negatives([table([LIST])], UNIFORM, count=2, seed=1, round_number=0)
    assert found.schema == CANDIDATES_SCHEMA
    item = found["candidates"][0].as_py()[1]
    assert item["student_score"] == pytest.approx(1.0 - 0.1 * int(item["doc_id"][1:]))
