"""`training.negatives` says which negatives of a list a step sees, and a resumed run draws what it would have drawn.

Why: a setting that does not arrive, or that moves when a run is killed and resumed, would only show as a number that
cannot be reproduced.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chunks_for_tests import confidence_of
from pydantic import ValidationError

from pipelines.corpus.dataset import Dataset
from pipelines.objectives.simans import simans_weights
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.spec import NegativeSampling
from pipelines.training.batches import batches
from pipelines.training.sampling import choose

GOLD = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)
SIMANS = NegativeSampling(strategy="simans", a=0.5, b=1.0)
DOCS = tuple(f"d{i}" for i in range(24))
LOGITS = np.linspace(8, -8, 24).astype(np.float32)


def row(*, gold: dict[str, int] | None = None, query: str = "train0") -> RankedRow:
    return RankedRow(
        query_id=query,
        doc_ids=np.array(DOCS, dtype=np.object_),
        teacher_logits=LOGITS,
        relevance=np.array([(gold or {}).get(doc, -1) for doc in DOCS], dtype=np.int16),
        confidence=confidence_of(LOGITS),
    )


def stream(rows: list[RankedRow]) -> Iterator[tuple[RankedRow, StreamPosition]]:
    for place, item in enumerate(rows):
        yield dataclasses.replace(item, place=StreamPosition(0, place)), StreamPosition(0, place + 1)


def drawn(negatives: NegativeSampling, *, gold: dict[str, int], seeds: int, width: int) -> Counter[str]:
    """How often each document was a negative."""
    found: Counter[str] = Counter()
    for seed in range(seeds):
        chosen = choose(row(gold=gold), width=width, rule=GOLD, rng=np.random.default_rng(seed), negatives=negatives)
        assert chosen is not None
        assert chosen.doc_ids[chosen.positive] in gold
        assert len(chosen.doc_ids) == width
        np.testing.assert_array_equal(chosen.teacher_logits, LOGITS[[DOCS.index(doc) for doc in chosen.doc_ids]])
        found.update(doc for place, doc in enumerate(chosen.doc_ids) if place != chosen.positive)
    return found


def test_negatives_are_drawn_by_their_teachers_distance_from_the_positive() -> None:
    found = drawn(SIMANS, gold={"d12": 1}, seeds=2000, width=2)
    others = [i for i in range(24) if i != 12]
    expected = simans_weights(LOGITS[others], float(LOGITS[12]), a=0.5, b=1.0)
    shares = np.array([found[DOCS[i]] for i in others]) / 2000
    assert np.abs(shares - expected).max() < 5 * np.sqrt(expected.max() * (1 - expected.max()) / 2000)
    assert found["d0"] < 20, "the hardest of the list is far from this positive: `mixed` always takes it"


def test_the_form_of_the_weights_reaches_the_draw() -> None:
    """The official code's b is the paper's -b; its MS MARCO script has other weights altogether."""

    def found(**setting: Any) -> Counter[str]:
        return drawn(NegativeSampling(strategy="simans", **setting), gold={"d12": 1}, seeds=60, width=3)

    assert found(form="code", b=1.5) == found(form="paper", b=-1.5) != found(form="paper", b=1.5)
    assert found(form="ms_marco") != found(form="paper")


def test_mixed_still_takes_the_hardest_half() -> None:
    found = drawn(NegativeSampling(), gold={"d12": 1}, seeds=50, width=9)
    assert all(found[doc] == 50 for doc in DOCS[:4])


def test_another_gold_document_is_no_negative_however_near_it_scores() -> None:
    found = drawn(SIMANS, gold={"d12": 1, "d13": 1}, seeds=200, width=4)
    assert not {"d12", "d13"} & set(found)


def test_a_query_without_a_positive_falls_back_to_mixed() -> None:
    """There is no score to measure a distance from."""
    both = [
        choose(row(), width=8, rule=GOLD, rng=np.random.default_rng(5), negatives=negatives)
        for negatives in (SIMANS, NegativeSampling())
    ]
    assert both[0] is not None
    assert both[0].positive == -1
    assert both[0].doc_ids == both[1].doc_ids


def test_a_teachers_own_positive_is_a_positive_too() -> None:
    rule = PositiveRule(use_labels=True, teacher_top=True, min_confidence=0.0)
    near = NegativeSampling(strategy="simans", a=100.0)
    chosen = choose(row(), width=4, rule=rule, rng=np.random.default_rng(0), negatives=near)
    assert chosen is not None
    assert chosen.doc_ids == ("d0", "d1", "d2", "d3")


def test_a_short_list_gives_all_it_has() -> None:
    documents, relevance = np.array(["a", "b", "c"], np.object_), np.array([1, -1, -1], np.int16)
    short = RankedRow("q", documents, np.array([90, 0, -90], np.float32), relevance)
    chosen = choose(short, width=8, rule=GOLD, rng=np.random.default_rng(0), negatives=SIMANS)
    assert chosen is not None
    assert chosen.doc_ids == ("a", "b", "c")


def test_what_a_row_draws_depends_on_seed_and_place_only(dataset: Dataset) -> None:
    rows = [row(gold={"d12": 1}) for _ in range(8)]
    settings: dict[str, Any] = {"queries_per_step": 2, "width": 6, "rule": GOLD, "negatives": SIMANS}
    whole = list(batches(stream(rows), dataset, seed=1, **settings))
    _, position = whole[1]
    rest = list(batches(list(stream(rows))[position.ordinal :], dataset, seed=1, **settings))
    assert [batch.document_texts for batch, _ in rest] == [batch.document_texts for batch, _ in whole[2:]]
    assert len({tuple(batch.document_texts) for batch, _ in whole}) > 1, "another place, another draw"
    other = list(batches(stream(rows), dataset, seed=2, **settings))
    assert other[0][0].document_texts != whole[0][0].document_texts


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "hardest"},
        {"strategy": "simans", "a": -0.1},
        {"strategy": "simans", "b": float("nan")},
        {"strategy": "simans", "c": 1.0},
        {"strategy": "mixed", "b": 1.0},
        {"a": 2.0},
    ],
)
def test_a_setting_that_is_impossible_or_without_effect_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NegativeSampling(**wrong)


@pytest.mark.parametrize("negatives", [NegativeSampling(), SIMANS])
def test_a_stored_setting_is_read_back(negatives: NegativeSampling) -> None:
    """A stored job spells out every default; that is no setting without effect."""
    assert NegativeSampling.model_validate_json(negatives.model_dump_json()) == negatives
