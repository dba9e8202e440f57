"""Which negatives `teacher_top` and `student_top` take: the best by the one's word and by the other's, exactly.

Why: hard negatives are what a student learns most from. Scores that slip by a column under a view, or a NaN that sorts
first, would pick other documents without a word.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, CountingScorer, TextPairs, hash_score
from pydantic import ValidationError

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.corpus.dataset import Dataset
from pipelines.ranked.filling import fill_round
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import RankedRow, StreamPosition, View, follow
from pipelines.ranked.view import filtered_view
from pipelines.spec import FilterSpec, NegativeSampling
from pipelines.training.batches import batches
from pipelines.training.sampling import choose

GOLD = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)
TEACHER_TOP, STUDENT_TOP = (NegativeSampling(strategy=name) for name in ("teacher_top", "student_top"))
SCORES = st.floats(-1, 1, width=32) | st.just(float("nan"))


@st.composite
def rows(draw: Callable) -> RankedRow:
    """Lists in teacher order with scores of the student, where it has any; ties, labels and NaN anywhere."""
    size = draw(st.integers(2, 12))
    logits = draw(st.lists(st.floats(-9, 9, width=32), min_size=size, max_size=size))
    return RankedRow(
        query_id="q",
        doc_ids=np.array([f"d{i}" for i in range(size)], dtype=np.object_),
        teacher_logits=np.array(sorted(logits, reverse=True), dtype=np.float32),
        relevance=np.array(draw(st.lists(st.sampled_from([-1, -1, 0, 1]), min_size=size, max_size=size)), np.int16),
        student_scores=np.array(draw(st.lists(SCORES, min_size=size, max_size=size)), np.float32),
    )


def negatives_of(row: RankedRow, width: int, negatives: NegativeSampling, seed: int) -> list[int] | None:
    """Places of the chosen negatives; None if there is nothing to learn."""
    chosen = choose(row, width=width, rule=GOLD, rng=np.random.default_rng(seed), negatives=negatives)
    if chosen is None:
        return None
    assert len(chosen.doc_ids) <= width
    assert list(chosen.doc_ids) == sorted(chosen.doc_ids, key=lambda doc: int(doc[1:])), "in list order"
    return [int(doc[1:]) for place, doc in enumerate(chosen.doc_ids) if place != chosen.positive]


@given(rows(), st.integers(2, 8), st.integers(0, 9))
def test_teacher_top_takes_the_teachers_best_that_are_no_positives(row: RankedRow, width: int, seed: int) -> None:
    others = [place for place in range(len(row.doc_ids)) if row.relevance[place] <= 0]
    room = width - bool(len(others) < len(row.doc_ids))
    found = negatives_of(row, width, TEACHER_TOP, seed)
    assert found is None or found == others[:room]


@given(rows(), st.integers(2, 8), st.integers(0, 9))
def test_student_top_takes_what_the_student_liked_best_and_last_what_it_never_found(
    row: RankedRow, width: int, seed: int
) -> None:
    """Among equals, and among those without a score, the teacher's better one."""
    others = [place for place in range(len(row.doc_ids)) if row.relevance[place] <= 0]
    room = width - bool(len(others) < len(row.doc_ids))
    best = sorted(
        others, key=lambda i: (bool(np.isnan(row.student_scores[i])), -np.nan_to_num(row.student_scores[i]), i)
    )
    found = negatives_of(row, width, STUDENT_TOP, seed)
    assert found is None or found == sorted(best[:room])


@given(rows(), st.integers(2, 8), st.sampled_from([TEACHER_TOP, STUDENT_TOP]))
def test_nothing_of_them_is_drawn(row: RankedRow, width: int, negatives: NegativeSampling) -> None:
    """With one positive at most, every seed gives the same list."""
    row.relevance[np.flatnonzero(row.relevance > 0)[1:]] = -1
    assert len({str(negatives_of(row, width, negatives, seed)) for seed in range(3)}) == 1


def test_parameters_of_simans_are_refused_for_them() -> None:
    with pytest.raises(ValidationError, match="'student_top' does not read them"):
        NegativeSampling(strategy="student_top", a=1.0)


QUERIES, WIDTH, PER_CHUNK = 7, 9, 3


def mined(dataset: Dataset) -> pa.Table:
    """Candidates with the student's scores, descending in list order; every third was found by BM25 alone."""
    queries, docs = dataset.queries["query_id"].to_pylist()[:QUERIES], dataset.documents["doc_id"].to_pylist()
    return pa.Table.from_pylist(
        [
            {
                "query_id": query,
                "candidates": [
                    {
                        "doc_id": docs[(7 * number + place) % 59],
                        "student_score": None if place % 3 == 2 else 1 - (place + number) / 32,
                        "bm25_rank": place,
                        "dense_rank": None if place % 3 == 2 else place,
                        "relevance": 1 if place == 4 else None,
                    }
                    for place in range(WIDTH)
                ],
            }
            for number, query in enumerate(queries)
        ],
        schema=CANDIDATES_SCHEMA,
    )


@pytest.fixture(scope="module")
def lists(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RankedLists:
    lists = RankedLists(tmp_path_factory.mktemp("lists"), CONTRACT)
    filled = fill_round(
        mined(dataset),
        TextPairs(dataset),
        lists,
        CountingScorer(),
        job_id="job",
        round_number=0,
        rows_per_chunk=PER_CHUNK,
        scratch=tmp_path_factory.mktemp("scratch") / "known",
    )
    assert len(list(filled)) == 3
    return lists


def followed(lists: RankedLists, *, view: View | None = None, scores: bool = True) -> list[tuple]:
    return list(
        follow(
            lists,
            job_id="job",
            round_number=0,
            num_rows=QUERIES,
            rows_per_chunk=PER_CHUNK,
            start=StreamPosition(),
            epochs=2,
            seed=1,
            wait=lambda: pytest.fail("nothing is missing"),
            view=view,
            student_scores=scores,
        )
    )


def view_of(dataset: Dataset, **settings: object) -> View:
    return filtered_view(FilterSpec(**settings), GOLD, lambda ids: [dataset.passage(doc) for doc in ids])


FILTERS = {"all": {}, "a window of ranks": {"rank_window": {"first": 3}}, "a margin": {"absolute_margin": 1.0}}


@pytest.mark.parametrize("filtered", FILTERS)
def test_every_candidate_comes_with_the_score_it_was_mined_with(
    lists: RankedLists, dataset: Dataset, filtered: str
) -> None:
    """Through the table, in the teacher's order, of whatever a view leaves; in a later epoch too."""
    mined_scores = {
        (row["query_id"], item["doc_id"]): np.nan if item["student_score"] is None else item["student_score"]
        for row in mined(dataset).to_pylist()
        for item in row["candidates"]
    }
    seen = 0
    for row, _ in followed(lists, view=view_of(dataset, **FILTERS[filtered])):
        assert len(row.student_scores) == len(row.doc_ids) == len(row.teacher_logits)
        assert (np.diff(row.teacher_logits) <= 0).all()
        expected = [mined_scores[row.query_id, doc] for doc in row.doc_ids]
        np.testing.assert_array_equal(row.student_scores, np.array(expected, dtype=np.float32))
        seen += len(row.doc_ids)
    assert (seen == 2 * QUERIES * WIDTH) == (filtered == "all")
    assert seen > 2 * QUERIES, "a view that left nothing would prove nothing"
    assert all(len(row.student_scores) == 0 for row, _ in followed(lists, scores=False))


@pytest.mark.parametrize("strategy", ["teacher_top", "student_top"])
@pytest.mark.parametrize("filtered", FILTERS)
def test_a_step_sees_the_hardest_of_what_the_view_leaves(
    lists: RankedLists, dataset: Dataset, filtered: str, strategy: str
) -> None:
    stream = followed(lists, view=view_of(dataset, **FILTERS[filtered]))
    made = batches(
        stream,
        dataset,
        queries_per_step=1,
        width=4,
        rule=GOLD,
        seed=0,
        negatives=NegativeSampling(strategy=strategy),
    )
    usable = [row for row, _ in stream if len(row.doc_ids) > 1]
    for row, (batch, _) in zip(usable, made, strict=True):
        student = dict(zip(row.doc_ids, np.nan_to_num(row.student_scores, nan=-np.inf), strict=True))
        teacher = {doc: hash_score(dataset.query_text(row.query_id), dataset.passage(doc)) for doc in row.doc_ids}
        negatives = [doc for doc, grade in zip(row.doc_ids, row.relevance, strict=True) if grade <= 0]
        score = teacher if strategy == "teacher_top" else student
        hardest = sorted(negatives, key=lambda doc: -score[doc])[: 4 - (len(negatives) < len(row.doc_ids))]
        listed = {batch.document_texts[i] for i in batch.columns[0][batch.mask[0] & ~batch.judged_positive[0]].tolist()}
        assert listed == {dataset.passage(doc) for doc in hardest}
