"""Exactly one table, round or list is found, or the error names all that it could have been."""

from dataclasses import replace
from pathlib import Path

import pytest
from exports_for_tests import CONTRACT, table_below
from lists_for_tests import ranked_chunk

from pipelines.corpus.dataset import Dataset
from pipelines.errors import RankedListsError
from pipelines.ranked.find import all_tables, find_list, find_lists, pick_round
from pipelines.ranked.schema import EVALUATION_ROUND
from pipelines.ranked.storage import Location
from pipelines.ranked.table import RankedLists, ranked_lists_location
from pipelines.teacher.contract import ScoreContract

OTHER = replace(CONTRACT, model_id="other", weights_hash="1" * 64)


def commit(
    root: Path, queries: list[str], *, job_id: str, round_number: int = 0, contract: ScoreContract = CONTRACT
) -> RankedLists:
    place = ranked_lists_location(root, dataset_fingerprint="d" * 64, contract_fingerprint=contract.fingerprint)
    lists = RankedLists(place, contract, dataset_fingerprint="d" * 64)
    rows = ranked_chunk(0, queries, job_id=job_id, round_number=round_number)
    lists.commit_chunk(rows, job_id=job_id, round_number=round_number, chunk_id=0)
    return lists


def test_the_only_table_needs_no_name(tmp_path: Path, dataset: Dataset) -> None:
    table_below(tmp_path, dataset)
    assert find_lists(tmp_path).contract == CONTRACT
    assert find_lists(str(tmp_path), "job", dataset_fingerprint=dataset.fingerprint).contract == CONTRACT
    assert [table.dataset_fingerprint for table in all_tables(tmp_path, unreadable=pytest.fail)] == [
        dataset.fingerprint
    ]


def test_nothing_there_is_a_sentence(tmp_path: Path) -> None:
    assert all_tables(tmp_path, unreadable=pytest.fail) == []
    with pytest.raises(RankedListsError, match="there are no ranked lists below"):
        find_lists(tmp_path)
    # A folder without a log is what a job leaves that died at once; it is no reason to refuse the others.
    (tmp_path / "ranked_lists" / ("d" * 64) / CONTRACT.fingerprint).mkdir(parents=True)
    assert all_tables(tmp_path, unreadable=pytest.fail) == []


def test_a_store_that_cannot_be_read_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bucket(_: Location) -> list[str]:
        raise OSError("NoSuchBucket")

    monkeypatch.setattr(Location, "folders", no_bucket)
    with pytest.raises(RankedListsError, match="s3://gone/root: cannot be read: NoSuchBucket"):
        find_lists("s3://gone/root")


def test_several_tables_are_listed_with_their_jobs(tmp_path: Path) -> None:
    commit(tmp_path, ["q"], job_id="one")
    commit(tmp_path, ["q"], job_id="two", contract=OTHER)
    with pytest.raises(RankedListsError) as refused:
        find_lists(tmp_path)
    assert "2 tables of ranked lists" in str(refused.value)
    assert all(word in str(refused.value) for word in ("one", "two", CONTRACT.fingerprint[:12], "(other)"))
    assert find_lists(tmp_path, "two").contract == OTHER
    assert find_lists(tmp_path, contract=CONTRACT.fingerprint[:8]).contract == CONTRACT


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"job_id": "three"}, "no ranked lists of job 'three'"),
        ({"dataset_fingerprint": "e" * 64}, "no ranked lists of data set eeeeeeeeeeee"),
        ({"contract": "zz"}, "no ranked lists under a contract 'zz'"),
    ],
)
def test_what_fits_nothing_is_told_what_there_is(wanted: dict[str, str], told: str, tmp_path: Path) -> None:
    commit(tmp_path, ["q"], job_id="one")
    with pytest.raises(RankedListsError, match=f"(?s){told}.*there are:.*one"):
        find_lists(tmp_path, **wanted)


def test_the_last_round_of_the_only_job(tmp_path: Path) -> None:
    commit(tmp_path, ["test"], job_id="job", round_number=EVALUATION_ROUND)
    lists = commit(tmp_path, ["q"], job_id="job", round_number=0)
    commit(tmp_path, ["q"], job_id="job", round_number=1)
    assert pick_round(lists).round_number == 1
    assert pick_round(lists, "job", 0).round_number == 0
    with pytest.raises(RankedListsError, match="no lists of job 'job' in round 7; the table holds: job round -1"):
        pick_round(lists, "job", 7)
    commit(tmp_path, ["q"], job_id="other")
    with pytest.raises(RankedListsError, match="lists of 2 jobs; name one of: job, other"):
        pick_round(lists)


def test_the_newest_list_of_a_query(tmp_path: Path) -> None:
    lists = commit(tmp_path, ["q1", "q2"], job_id="job", round_number=0)
    commit(tmp_path, ["q1"], job_id="job", round_number=1)
    commit(tmp_path, ["test"], job_id="job", round_number=EVALUATION_ROUND)
    assert find_list(lists, "q1").round.round_number == 1
    assert find_list(lists, "q2").round.round_number == 0
    assert find_list(lists, "q1", round_number=0).round.round_number == 0
    found = find_list(lists, "test")
    assert found.round.round_number == EVALUATION_ROUND
    assert found.columns.query_id[found.place] == "test"
    with pytest.raises(RankedListsError, match=r"job 'job' has no list of query 'q3' \(rounds searched: -1, 0, 1\)"):
        find_list(lists, "q3")


def test_one_table_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, dataset: Dataset) -> None:
    # A later version made it, or its maker is just beginning.
    table_below(tmp_path, dataset)
    (tmp_path / "ranked_lists" / "data" / "contract" / "_delta_log").mkdir(parents=True)
    errors: list[RankedListsError] = []
    assert len(all_tables(tmp_path, unreadable=errors.append)) == 1
    assert "ranked_lists/data/contract" in str(errors[0])
    assert find_lists(tmp_path).rounds()
    with pytest.raises(RankedListsError, match=r"(?s)no ranked lists of job 'else'.*unreadable: .*data/contract"):
        find_lists(tmp_path, "else")
