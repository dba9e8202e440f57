"""What is known about a round's pairs is what any job committed under the same weights, found in one pass."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_for_tests import CONTRACT, candidates_of

from pipelines.errors import RankedListsError
from pipelines.ranked import known
from pipelines.ranked.data_file import DataFileReader
from pipelines.ranked.known import KnownLogits
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.table import RankedLists
from pipelines.ranked.upkeep import compact

DOCS = [f"d{i}" for i in range(6)]
ROUND = st.dictionaries(
    st.sampled_from([f"q{i}" for i in range(9)]), st.lists(st.sampled_from(DOCS), unique=True, max_size=6), min_size=1
)


def commit(
    lists: RankedLists, wanted: dict[str, list[str]], *, job_id: str, chunk_id: int = 0, version: int = 0
) -> dict[tuple[str, str], float]:
    """Commit lists whose logits are numbers of their own; returns them."""
    pairs = [(query, doc) for query, docs in wanted.items() for doc in docs]
    logits = np.array([float(f"{version}.{q[1:]}{d[1:]}") for q, d in pairs], dtype=np.float32)
    place = {"job_id": job_id, "round_number": 0, "chunk_id": chunk_id}
    lists.commit_chunk(rank_candidates(candidates_of(wanted), logits, **place, weights_version=version), **place)
    return dict(zip(pairs, logits.tolist(), strict=True))


def look_up(found: KnownLogits, wanted: dict[str, list[str]], *, window: int) -> dict[tuple[str, str], float]:
    table = candidates_of(wanted)
    logits = np.concatenate([found.logits(table.slice(first, window), first) for first in range(0, len(table), window)])
    pairs = [(query, doc) for query, docs in wanted.items() for doc in docs]
    return {pair: value for pair, value in zip(pairs, logits.tolist(), strict=True) if not np.isnan(value)}


def knowledge(lists: RankedLists, wanted: dict[str, list[str]], folder: Path, *, window: int = 4) -> KnownLogits:
    return KnownLogits(lists, list(wanted), weights_version=0, own=("mine", 0), folder=folder / "known", window=window)


@settings(max_examples=30, deadline=None)
@given(st.lists(ROUND, max_size=3), ROUND, st.integers(1, 5), st.booleans())
def test_it_is_the_join_with_everything_committed(
    tmp_path_factory: pytest.TempPathFactory,
    jobs: list[dict[str, list[str]]],
    wanted: dict[str, list[str]],
    window: int,
    compacted: bool,
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    lists = RankedLists(folder / "lists", CONTRACT)
    expected: dict[tuple[str, str], float] = {}
    for number, job in enumerate(jobs):
        expected |= commit(lists, job, job_id="other", chunk_id=number)
    if compacted:
        compact(lists, "other", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "MOST_BUCKETS", 2)
        patch.setattr(known, "_READ_LISTS", 2)
        found = knowledge(lists, wanted, folder, window=window)
        assert look_up(found, wanted, window=window) == {
            (query, doc): expected[query, doc] for query in wanted for doc in wanted[query] if (query, doc) in expected
        }
    found.close()
    assert list((folder / "known").iterdir()) == []


def test_scores_of_other_weights_are_not_known(tmp_path: Path) -> None:
    # A ranker that learned on has other scores for the same pair.
    lists, wanted = RankedLists(tmp_path / "lists", CONTRACT), {"q1": ["d1", "d2"]}
    commit(lists, wanted, job_id="other", version=1)
    found = knowledge(lists, wanted, tmp_path)
    assert look_up(found, wanted, window=4) == {}
    of_theirs = commit(lists, {"q1": ["d2"]}, job_id="other", chunk_id=1)
    assert look_up(found, wanted, window=4) == of_theirs


def test_each_file_is_read_once_and_own_ones_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One pass over the table, whatever the number of windows: the second job on a million queries must not crawl.
    lists = RankedLists(tmp_path / "lists", CONTRACT)
    wanted = {f"q{i}": ["d1"] for i in range(8)}
    for chunk_id in range(4):
        commit(lists, {f"q{chunk_id}": ["d1"]}, job_id="other", chunk_id=chunk_id)
    commit(lists, {"q7": ["d1"]}, job_id="mine", chunk_id=9)
    opened: list[str] = []
    whole = DataFileReader.row_groups
    monkeypatch.setattr(
        DataFileReader, "row_groups", lambda file, columns=None: opened.append(file._path) or whole(file, columns)
    )
    found = knowledge(lists, wanted, tmp_path, window=2)
    look_up(found, wanted, window=2)
    look_up(found, wanted, window=2)
    assert len(opened) == len(set(opened)) == 4
    compact(lists, "other", 0)
    opened.clear()
    look_up(found, wanted, window=2)
    assert opened == [], "compaction brings nothing new"


def test_of_a_pair_that_two_jobs_scored_at_once_the_same_one_is_always_taken(tmp_path: Path) -> None:
    lists, place = RankedLists(tmp_path / "lists", CONTRACT), {"round_number": 0, "chunk_id": 0}
    for job_id, logit in (("a", 0.25), ("b", 0.125)):
        rows = rank_candidates(
            candidates_of({"q1": ["d1"]}), np.array([logit], np.float32), job_id=job_id, **place, weights_version=0
        )
        lists.commit_chunk(rows, job_id=job_id, **place)
    assert look_up(knowledge(lists, {"q1": ["d1"]}, tmp_path), {"q1": ["d1"]}, window=4) == {("q1", "d1"): 0.125}


def test_two_drivers_of_a_job_do_not_empty_each_others_folders(tmp_path: Path) -> None:
    # One was replaced and does not know it yet.
    lists, wanted = RankedLists(tmp_path / "lists", CONTRACT), {"q1": ["d1"]}
    expected = commit(lists, wanted, job_id="other")
    old, new = knowledge(lists, wanted, tmp_path), knowledge(lists, wanted, tmp_path)
    assert look_up(new, wanted, window=4) == expected
    old.close()
    assert look_up(new, wanted, window=4) == expected


def test_a_folder_that_takes_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    lists, wanted = RankedLists(tmp_path / "lists", CONTRACT), {"q1": ["d1"]}
    commit(lists, wanted, job_id="other")
    found = knowledge(lists, wanted, tmp_path)
    found.close()
    with pytest.raises(RankedListsError, match="known logits cannot be kept in"):
        look_up(found, wanted, window=4)
