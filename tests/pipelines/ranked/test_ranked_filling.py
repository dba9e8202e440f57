"""The teacher is asked once per pair: not again by a second job, nor by the one that goes on after a crash."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, CountingScorer, TextPairs, candidates_of, hash_score, lists_of

from pipelines.corpus.dataset import Dataset
from pipelines.errors import Cancelled, RankedListsError
from pipelines.ranked.filling import ChunkDone, chunk_count, fill_round
from pipelines.ranked.table import RankedLists
from pipelines.teacher.scorer import ScoreRequest


def fill(
    dataset: Dataset,
    lists: RankedLists,
    scorer: CountingScorer,
    wanted: dict[str, list[str]],
    *,
    job_id: str = "job",
    round_number: int = 0,
    before_request: Callable[[], None] = lambda: None,
) -> list[ChunkDone]:
    return list(
        fill_round(
            candidates_of(wanted),
            TextPairs(dataset),
            lists,
            scorer,
            job_id=job_id,
            round_number=round_number,
            rows_per_chunk=4,
            scratch=lists.location.local / "_scratch",
            before_request=before_request,
        )
    )


def test_every_query_is_in_one_row_with_the_teachers_scores(dataset: Dataset, tmp_path: Path) -> None:
    wanted = lists_of(dataset, 10)
    done = fill(dataset, RankedLists(tmp_path, CONTRACT), CountingScorer(), wanted)
    assert [(item.chunk_id, item.num_queries, item.num_new_pairs, item.num_reused_pairs) for item in done] == [
        (0, 4, 12, 0),
        (1, 4, 12, 0),
        (2, 2, 6, 0),
    ]
    rows = DeltaTable(str(tmp_path)).to_pyarrow_table().to_pylist()
    assert sorted(row["query_id"] for row in rows) == sorted(wanted)
    for row in rows:
        for item in row["candidates"]:
            text, passage = dataset.query_text(row["query_id"]), dataset.passage(item["doc_id"])
            assert item["teacher_logit"] == hash_score(text, passage)


def test_a_second_job_sends_no_pair(dataset: Dataset, tmp_path: Path) -> None:
    # Retuning a loss must never cost a teacher call.
    wanted, lists = lists_of(dataset, 10), RankedLists(tmp_path, CONTRACT)
    fill(dataset, lists, CountingScorer(), wanted)
    scorer = CountingScorer()
    done = fill(dataset, RankedLists(tmp_path, CONTRACT), scorer, wanted, job_id="second")
    assert scorer.pairs == []
    assert sum(item.num_reused_pairs for item in done) == 30
    assert len(DeltaTable(str(tmp_path)).to_pyarrow_table()) == 20


def test_only_new_documents_of_a_list_are_sent(dataset: Dataset, tmp_path: Path) -> None:
    # The next round mines much of what the last one did.
    lists = RankedLists(tmp_path, CONTRACT)
    fill(dataset, lists, CountingScorer(), {"train0": ["d1", "d2"]})
    scorer = CountingScorer()
    (done,) = fill(dataset, lists, scorer, {"train0": ["d2", "d3"]}, round_number=1)
    assert scorer.pairs == [(dataset.query_text("train0"), dataset.passage("d3"))]
    assert (done.num_new_pairs, done.num_reused_pairs) == (1, 1)


def test_scores_of_older_weights_are_not_reused(dataset: Dataset, tmp_path: Path) -> None:
    lists = RankedLists(tmp_path, CONTRACT)
    fill(dataset, lists, CountingScorer(), {"train0": ["d1", "d2"]})
    scorer = CountingScorer(weights_version=1)
    fill(dataset, lists, scorer, {"train0": ["d1", "d2"]}, round_number=1)
    assert len(scorer.pairs) == 2


def test_a_query_without_candidates_has_an_empty_list(dataset: Dataset, tmp_path: Path) -> None:
    (done,) = fill(dataset, RankedLists(tmp_path, CONTRACT), CountingScorer(), {"train0": []})
    assert done.num_queries == 1
    (row,) = DeltaTable(str(tmp_path)).to_pyarrow_table().to_pylist()
    assert row["candidates"] == []


class StopsAfter(CountingScorer):
    """Dies after some chunks, in whatever order it answers."""

    def __init__(self, chunks: int, order: list[int]) -> None:
        super().__init__()
        self._left = chunks
        self._order = order

    def arrange(self, requests: list[ScoreRequest]) -> list[ScoreRequest]:
        by_key = {request.key: request for request in requests}
        return [by_key[key] for key in self._order if key in by_key][: self._left]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 5), st.permutations(range(5)))
def test_a_round_goes_on_where_it_was_left(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, survived: int, order: list[int]
) -> None:
    path, wanted = tmp_path_factory.mktemp("lists"), lists_of(dataset, 18)
    first = StopsAfter(survived, order)
    # A scorer that ends early is an error: test lists that were never ranked would count as a bad teacher.
    with pytest.raises(RankedListsError, match=f"{5 - survived} of 5") if survived < 5 else contextlib.nullcontext():
        fill(dataset, RankedLists(path, CONTRACT), first, wanted)
    second = CountingScorer()
    done = fill(dataset, RankedLists(path, CONTRACT), second, wanted)
    assert not set(first.pairs) & set(second.pairs), "a committed chunk was scored again"
    assert len(first.pairs) + len(second.pairs) == 18 * 3
    assert sorted(item.chunk_id for item in done) == list(range(5)), "each chunk is reported once, committed ones too"
    assert sum(item.num_queries for item in done) == 18
    rows = DeltaTable(str(path)).to_pyarrow_table()
    assert sorted(rows["query_id"].to_pylist()) == sorted(wanted)


def test_what_is_asked_before_a_request_may_stop_the_round(dataset: Dataset, tmp_path: Path) -> None:
    asked: list[int] = []

    def cancel_at_the_third() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Cancelled("stop")

    scorer = CountingScorer()
    with pytest.raises(Cancelled):
        fill(
            dataset, RankedLists(tmp_path, CONTRACT), scorer, lists_of(dataset, 18), before_request=cancel_at_the_third
        )
    assert len(asked) == 3
    assert scorer.pairs == []


def test_chunks_cover_all_rows() -> None:
    assert [chunk_count(rows, 4) for rows in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
