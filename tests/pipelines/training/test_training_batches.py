"""What a step learns from: never a positive as a negative, no guess below the confidence asked for, every text once."""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from chunks_for_tests import confidence_of
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.training.batches import ListBatch, batches
from pipelines.training.sampling import choose

TEACHER = PositiveRule(use_labels=True, teacher_top=True, min_confidence=0.5)
GOLD = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


def row(
    docs: list[str], *, logits: list[float] | None = None, gold: dict[str, int] | None = None, query: str = "q"
) -> RankedRow:
    scores = logits or [-float(i) for i in range(len(docs))]
    return RankedRow(
        query_id=query,
        doc_ids=np.array(docs, dtype=np.object_),
        teacher_logits=np.array(scores, dtype=np.float32),
        relevance=np.array([(gold or {}).get(doc, -1) for doc in docs], dtype=np.int16),
        confidence=confidence_of(scores),
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


ROWS = st.integers(0, 14).flatmap(
    lambda n: st.builds(
        lambda logits, relevance: RankedRow(
            query_id="q",
            doc_ids=np.array([f"d{i}" for i in range(n)], dtype=np.object_),
            teacher_logits=np.array(sorted(logits, reverse=True), dtype=np.float32),
            relevance=np.array(relevance, dtype=np.int16),
            confidence=confidence_of(logits),
        ),
        st.lists(st.floats(-20, 20, width=32), min_size=n, max_size=n),
        st.lists(st.sampled_from([-1, -1, -1, 0, 1, 2]), min_size=n, max_size=n),
    )
)
RULES = st.builds(PositiveRule, use_labels=st.booleans(), teacher_top=st.booleans(), min_confidence=st.floats(0, 1))


@given(ROWS, st.integers(2, 10), RULES, st.integers(0, 99))
def test_a_chosen_list_is_part_of_the_list_in_its_order(
    ranked: RankedRow, width: int, rule: PositiveRule, seed: int
) -> None:
    chosen = choose(ranked, width=width, rule=rule, rng=rng(seed))
    golds = {doc for doc, grade in zip(ranked.doc_ids, ranked.relevance, strict=True) if grade > 0}
    if chosen is None:
        return
    assert 2 <= len(chosen.doc_ids) <= width
    places = [ranked.doc_ids.tolist().index(doc) for doc in chosen.doc_ids]
    assert all(a < b for a, b in pairwise(places))
    np.testing.assert_array_equal(chosen.teacher_logits, ranked.teacher_logits[places])
    if golds and rule.use_labels:
        # A gold document that serves as a negative teaches the opposite of its label.
        assert set(chosen.doc_ids) & golds == {chosen.doc_ids[chosen.positive]}
        assert set(chosen.other_positives) == golds - {chosen.doc_ids[chosen.positive]}
        np.testing.assert_array_equal(chosen.judged_positive, np.arange(len(places)) == chosen.positive)
    else:
        assert chosen.other_positives == ()
        assert not chosen.judged_positive.any()
        assert chosen.positive in ({-1, 0} if rule.teacher_top else {-1})


@given(ROWS, st.integers(2, 10), RULES)
def test_a_list_is_refused_only_if_it_has_no_two_usable_candidates(
    ranked: RankedRow, width: int, rule: PositiveRule
) -> None:
    golds = int((ranked.relevance > 0).sum()) if rule.use_labels else 0
    usable = len(ranked.doc_ids) - max(0, golds - 1)
    assert (choose(ranked, width=width, rule=rule, rng=rng()) is None) == (usable < 2)


def test_the_hardest_half_is_always_there_and_the_rest_is_drawn() -> None:
    # Hardest only would never show the tail of the list; random only would rarely show what confuses the student.
    docs = [f"d{i}" for i in range(20)]
    seen: set[str] = set()
    for seed in range(40):
        chosen = choose(row(docs, gold={"d19": 1}), width=8, rule=GOLD, rng=rng(seed))
        assert chosen is not None
        assert chosen.doc_ids[:4] == ("d0", "d1", "d2", "d3")
        assert chosen.doc_ids[chosen.positive] == "d19"
        assert len(chosen.doc_ids) == 8
        seen |= set(chosen.doc_ids)
    assert seen == set(docs)


def test_every_gold_document_gets_its_turn() -> None:
    drawn = {
        chosen.doc_ids[chosen.positive]
        for seed in range(30)
        if (chosen := choose(row(["a", "b", "c"], gold={"a": 1, "b": 2}), width=2, rule=GOLD, rng=rng(seed)))
    }
    assert drawn == {"a", "b"}


@pytest.mark.parametrize(("gap", "expected"), [(0.1, 0), (-0.1, -1)])
def test_the_teachers_best_is_a_positive_only_at_the_confidence_asked_for(gap: float, expected: int) -> None:
    # Softmax over the whole list: with 3 others at 0, logit log(3) has probability one half.
    logits = [float(np.log(3)) + gap, 0.0, 0.0, 0.0]
    chosen = choose(row(["a", "b", "c", "d"], logits=logits), width=2, rule=TEACHER, rng=rng())
    assert chosen is not None
    assert chosen.positive == expected


def test_confidence_is_that_of_the_whole_list_whatever_is_drawn() -> None:
    # Over the drawn two candidates the same logits would look twice as sure.
    chosen = choose(row([f"d{i}" for i in range(12)], logits=[1.0] + [0.0] * 11), width=2, rule=TEACHER, rng=rng())
    assert chosen is not None
    assert chosen.positive == -1


def test_extreme_logits_do_not_overflow_the_confidence() -> None:
    chosen = choose(row(["a", "b"], logits=[1e4, -1e4]), width=2, rule=TEACHER, rng=rng())
    assert chosen is not None
    assert chosen.positive == 0


def test_gold_comes_before_the_teachers_opinion() -> None:
    chosen = choose(row(["a", "b", "c"], logits=[9, 0, 0], gold={"c": 1}), width=3, rule=TEACHER, rng=rng())
    assert chosen is not None
    assert chosen.doc_ids[chosen.positive] == "c"


def test_without_use_labels_gold_is_one_candidate_among_others() -> None:
    rule = PositiveRule(use_labels=False, teacher_top=True, min_confidence=0.5)
    chosen = choose(row(["a", "b", "c"], logits=[9, 0, 0], gold={"c": 1}), width=3, rule=rule, rng=rng())
    assert chosen is not None
    assert chosen.doc_ids[chosen.positive] == "a"
    assert "c" in chosen.doc_ids


def stream(rows: list[RankedRow]) -> Iterator[tuple[RankedRow, StreamPosition]]:
    for place, item in enumerate(rows):
        yield dataclasses.replace(item, place=StreamPosition(0, place)), StreamPosition(0, place + 1)


def one_batch(dataset: Dataset, *rows: RankedRow, rule: PositiveRule = TEACHER, width: int = 8) -> ListBatch:
    ((batch, _),) = batches(
        stream(list(rows)),
        dataset,
        queries_per_step=len(rows),
        width=width,
        rule=rule,
        seed=1,
    )
    return batch


def test_tensors_say_what_the_lists_say(dataset: Dataset) -> None:
    batch = one_batch(
        dataset,
        row(["d3", "d4", "d5"], query="train0", gold={"d4": 1}),
        row(["d5", "d6"], query="test32", logits=[0.2, 0.1]),
    )
    assert batch.query_texts == [dataset.query_text("train0"), dataset.query_text("test32")]
    assert batch.document_texts == [dataset.passage(doc) for doc in ("d3", "d4", "d5", "d6")], "each text once"
    assert batch.columns.tolist() == [[0, 1, 2], [2, 3, 0]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.teacher_logits.tolist() == [[0.0, -1.0, -2.0], [pytest.approx(0.2), pytest.approx(0.1), 0.0]]
    assert batch.judged_positive.tolist() == [[False, True, False], [False, False, False]]
    assert batch.positive.tolist() == [1, 0]  # a softmax over 0.2 and 0.1 is above one half
    assert torch.nonzero(batch.relevant).tolist() == [[0, 1], [1, 2]]


def test_other_gold_documents_are_known_to_be_relevant(dataset: Dataset) -> None:
    # The list leaves the second gold out, but another query's list may bring it back as an in-batch negative.
    batch = one_batch(
        dataset,
        row(["d1", "d2", "d3"], query="train0", gold={"d1": 1, "d2": 1}),
        row(["d1", "d2", "d9"], query="train1", gold={"d9": 1}),
        rule=GOLD,
    )
    positive = batch.document_texts[int(batch.columns[0, batch.positive[0]])]
    (other,) = {dataset.passage("d1"), dataset.passage("d2")} - {positive}
    relevant = {text for text, known in zip(batch.document_texts, batch.relevant[0], strict=True) if known}
    assert relevant == {positive, other}
    assert batch.relevant[1].sum() == 1


def test_a_copy_of_the_positive_is_relevant_too(dataset: Dataset) -> None:
    # d59 reads exactly as d0: as a negative it would contradict the positive.
    assert dataset.passage("d59") == dataset.passage("d0")
    batch = one_batch(
        dataset,
        row(["d0", "d5"], query="train0", gold={"d0": 1}),
        row(["d59", "d7"], query="train1", gold={"d7": 1}),
        row(["d0", "d8"], query="train2", logits=[5.0, 0.0]),
    )
    place = {doc: i for i, doc in enumerate(("d0", "d5", "d59", "d7", "d8"))}
    copies = [place["d0"], place["d59"]]
    assert torch.nonzero(batch.relevant).tolist() == [
        *([0, copy] for copy in copies),
        [1, place["d7"]],
        *([2, copy] for copy in copies),
    ]


def test_a_list_without_positive_knows_nothing_relevant(dataset: Dataset) -> None:
    batch = one_batch(dataset, row(["d0", "d5"], query="train0", logits=[0.0, 0.0]), rule=GOLD)
    assert batch.positive.tolist() == [-1]
    assert not batch.relevant.any()


def test_unusable_rows_are_passed_over_and_the_last_batch_may_be_smaller(dataset: Dataset) -> None:
    rows = [row(["d1", "d2"], query="train0") if i != 1 else row(["d1"], query="train1") for i in range(6)]
    found = list(batches(stream(rows), dataset, queries_per_step=2, width=4, rule=GOLD, seed=1))
    assert [(len(batch.query_texts), position.ordinal) for batch, position in found] == [(2, 3), (2, 5), (1, 6)]


def test_what_a_row_contributes_depends_on_its_place_only(dataset: Dataset) -> None:
    # So that a resumed run draws what the uninterrupted one would have.
    rows = [row([f"d{i}" for i in range(30)], query="train0") for _ in range(8)]
    settings = {"queries_per_step": 2, "width": 6, "rule": GOLD}
    whole = list(batches(stream(rows), dataset, seed=1, **settings))
    _, position = whole[1]
    rest = list(batches(list(stream(rows))[position.ordinal :], dataset, seed=1, **settings))
    assert [batch.document_texts for batch, _ in rest] == [batch.document_texts for batch, _ in whole[2:]]
    other = list(batches(stream(rows), dataset, seed=2, **settings))
    assert other[0][0].document_texts != whole[0][0].document_texts


def test_several_positives_may_stand_in_one_list_and_none_is_a_negative(dataset: Dataset) -> None:
    rule = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0, per_query=2)
    gold = {"d1": 1, "d2": 1, "d3": 1}
    batch = one_batch(
        dataset,
        row(["d1", "d2", "d3", "d4", "d5", "d6"], query="train0", gold=gold),
        row(["d3", "d9"], query="train1", gold={"d9": 1}),
        rule=rule,
        width=4,
    )
    listed = [batch.document_texts[i] for i in batch.columns[0][batch.mask[0]].tolist()]
    positives = {dataset.passage(doc) for doc in gold}
    assert len(listed) == 4
    assert len(positives & set(listed)) == 2 == int(batch.judged_positive[0].sum())
    assert bool(batch.judged_positive[0, batch.positive[0]])
    relevant = {text for text, known in zip(batch.document_texts, batch.relevant[0], strict=True) if known}
    assert relevant == positives & set(batch.document_texts), "whoever brought them into the batch"


def test_queries_of_equal_text_share_what_is_relevant(dataset: Dataset) -> None:
    """Else the positive of one would be a negative of the other."""
    same = dataclasses.replace(row(["d1", "d2"], query="train0", gold={"d1": 1}), doc_ids=("d3", "d4"))
    batch = one_batch(dataset, row(["d1", "d2"], query="train0", gold={"d1": 1}), same)
    assert batch.relevant.tolist() == [[True, False, True, False]] * 2


def test_more_positives_than_are_judged_change_nothing(dataset: Dataset) -> None:
    def drawn(per_query: int) -> ListBatch:
        rule = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0, per_query=per_query)
        return one_batch(dataset, row(["d1", "d2", "d3", "d4"], query="train0", gold={"d2": 1}), rule=rule, width=3)

    assert drawn(3).document_texts == drawn(1).document_texts
