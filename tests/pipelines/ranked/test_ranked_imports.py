"""Scores made elsewhere become lists under their own contract, once; what is wrong with a file is said by line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exports_for_tests import LISTS, Exporter, logit, table_below
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.corpus.dataset import Dataset
from pipelines.errors import DataError
from pipelines.ranked.columns import UNJUDGED, ListColumns
from pipelines.ranked.find import find_lists
from pipelines.ranked.imports import import_scores, imported_contract
from pipelines.ranked.table import RankedLists

Run = Callable[..., Path]
GOOD = "train0 Q0 d3 1 7.5 bm25\ntrain0 Q0 d1 2 -0.25 bm25\npool12 Q0 d3 1 1e-3 bm25\n"


@pytest.fixture
def write(tmp_path: Path) -> Run:
    def written(text: str, name: str = "scores.trec") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return written


def imported(lists: RankedLists, job_id: str) -> dict[str, list[tuple[str, float]]]:
    """query -> (document, score), best first."""
    found: dict[str, list[tuple[str, float]]] = {}
    for rows in lists.chunks(job_id, 0):
        columns = ListColumns(rows)
        for number, query_id in enumerate(columns.query_id):
            place = slice(*columns.offsets[number : number + 2])
            assert query_id not in found
            found[query_id] = list(
                zip(columns.doc_id[place].tolist(), columns.teacher_logit[place].tolist(), strict=True)
            )
    return found


def test_a_run_becomes_lists_under_a_contract_of_its_own(write: Run, dataset: Dataset, tmp_path: Path) -> None:
    report = import_scores(write(GOOD), dataset, tmp_path / "root", name="our-bm25")
    assert (report.num_lists, report.num_pairs, report.num_committed) == (2, 3, 2)
    assert imported(report.lists, report.job_id) == {
        "train0": [("d3", 7.5), ("d1", -0.25)],
        "pool12": [("d3", float(np.float32(1e-3)))],
    }
    contract = report.lists.contract
    assert contract.model_id == "imported:our-bm25"
    assert contract == imported_contract(write(GOOD, "renamed.run"), name="our-bm25")
    assert find_lists(tmp_path / "root", report.job_id).contract == contract
    assert report.job_id.startswith("import-")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet", "trec.gz"])
def test_every_kind_of_file_says_the_same(suffix: str, write: Run, dataset: Dataset, tmp_path: Path) -> None:
    rows = [
        {"query_id": line.split()[0], "doc_id": line.split()[2], "score": float(line.split()[4])}
        for line in GOOD.splitlines()
    ]
    path = tmp_path / f"scores.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "trec.gz":
        path.write_bytes(gzip.compress(GOOD.encode()))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    one = import_scores(path, dataset, tmp_path / "root", name="x")
    other = import_scores(write(GOOD), dataset, tmp_path / "root", name="x")
    assert imported(one.lists, one.job_id) == imported(other.lists, other.job_id)
    assert one.lists.contract.fingerprint != other.lists.contract.fingerprint  # another file, another contract


def test_importing_again_commits_nothing_twice(write: Run, dataset: Dataset, tmp_path: Path) -> None:
    first = import_scores(write(GOOD), dataset, tmp_path / "root", name="x")
    again = import_scores(write(GOOD, "copy.trec"), dataset, tmp_path / "root", name="another name")
    assert (again.job_id, again.num_lists, again.num_committed) == (first.job_id, 2, 0)
    assert [(each.job_id, each.num_lists) for each in again.lists.rounds()] == [(first.job_id, 2)]


def test_an_import_that_was_cut_off_goes_on(
    write: Run, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ranked.imports.LISTS_PER_CHUNK", 1)
    commit = RankedLists.commit_chunk

    def full_disk(self: RankedLists, rows: pa.Table, **filed: Any) -> bool:
        if filed["chunk_id"] == 1:
            raise OSError("no space left")
        return commit(self, rows, **filed)

    monkeypatch.setattr(RankedLists, "commit_chunk", full_disk)
    with pytest.raises(OSError, match="no space"):
        import_scores(write(GOOD), dataset, tmp_path / "root", name="x")
    monkeypatch.setattr(RankedLists, "commit_chunk", commit)
    report = import_scores(write(GOOD), dataset, tmp_path / "root", name="x")
    assert report.num_committed == 1
    assert sorted(imported(report.lists, report.job_id)) == ["pool12", "train0"]


def test_relevance_comes_from_the_split(write: Run, dataset: Dataset, tmp_path: Path) -> None:
    judged = dataset.judged("train")
    query = "train0"
    (positive, grade), *_ = judged[query].items()
    other = next(doc for doc in dataset.document_row if doc not in judged[query])
    path = write(f"{query} Q0 {positive} 1 2.0 x\n{query} Q0 {other} 2 1.0 x\n")
    plain = import_scores(path, dataset, tmp_path / "root", name="x")
    labelled = import_scores(path, dataset, tmp_path / "root", name="x", split="train")
    assert plain.job_id != labelled.job_id  # with other judgements they are other lists
    (rows,) = labelled.lists.chunks(labelled.job_id, 0)
    assert ListColumns(rows).relevance.tolist() == [grade, UNJUDGED]
    (rows,) = plain.lists.chunks(plain.job_id, 0)
    assert ListColumns(rows).relevance.tolist() == [UNJUDGED, UNJUDGED]
    with pytest.raises(DataError, match="split 'dev'"):
        import_scores(path, dataset, tmp_path / "root", name="x", split="dev")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train0 Q0 d1 1 1.0\n", r"scores.trec, line 1: expected the 6 fields .* got 5: 'train0 Q0 d1 1 1.0'"),
        (f"{GOOD}\ntrain1 Q0 d1 1 high x\n", r"line 5: rank '1' and score 'high' must be numbers"),
        (f"{GOOD}train1 Q0 d1 first 1.0 x\n", r"line 4: rank 'first' and score '1.0' must be numbers"),
        ("train0 Q0 d1 1 nan x\n", r"line 1: the score nan is not a finite float32"),
        ("train0 Q0 d1 1 1e39 x\n", r"line 1: the score 1e\+39 is not a finite float32"),
        ("nobody Q0 d1 1 1.0 x\n", r"line 1: query 'nobody' is not in data set 'data'"),
        ("train0 Q0 nothing 1 1.0 x\n", r"line 1: document 'nothing' \(query 'train0'\) is not in data set"),
        (
            "train0 Q0 d1 1 3 x\ntrain0 Q0 d2 2 2 x\ntrain0 Q0 d1 3 1 x\n",
            r"line 3: document 'd1' of query 'train0' was scored before, in scores.trec, line 1",
        ),
        (
            f"{GOOD}train0 Q0 d7 3 -1 x\n",
            r"line 4: query 'train0' comes again, after its lines ended at scores.trec, line 2; .* stand together",
        ),
        (
            "train0 Q0 d1 1 0.1 x\ntrain0 Q0 d2 2 0.9 x\n",
            r"line 2: rank 2 has score 0.9, above the 0.1 of rank 1 \(.*line 1\); a score must be higher where",
        ),
        ("", r"scores.trec: holds no score"),
        ("\n\n", r"scores.trec: holds no score"),
    ],
)
def test_what_is_wrong_is_said_by_line(text: str, message: str, write: Run, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        import_scores(write(text), dataset, tmp_path / "root", name="x")
    # Not even the good lines before it were committed.
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_id": "train0", "doc_id": "d1"}, "line 1: the score must be a number, got None"),
        ({"query_id": "train0", "doc_id": "d1", "score": "3"}, "line 1: the score must be a number, got '3'"),
        ({"query_id": "train0", "doc_id": "d1", "score": True}, "the score must be a number, got True"),
        ({"query_id": 5, "doc_id": "d1", "score": 1.0}, "'query_id' must be a string, got 5"),
        ({"query_id": "train0", "score": 1.0}, "missing 'doc_id'"),
    ],
)
def test_rows_are_checked_too(row: dict[str, Any], message: str, write: Run, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        import_scores(write(json.dumps(row), "scores.jsonl"), dataset, tmp_path / "root", name="x")


def test_a_file_that_is_not_there_and_a_name_that_is_not_given(write: Run, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone.trec"):
        import_scores(tmp_path / "gone.trec", dataset, tmp_path / "root", name="x")
    with pytest.raises(DataError, match="need a name"):
        import_scores(write(GOOD), dataset, tmp_path / "root", name=" ")


def test_broken_gzip_is_a_sentence(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "scores.trec.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        import_scores(path, dataset, tmp_path / "root", name="x")


def test_ties_and_equal_ranks_stay_in_file_order(write: Run, dataset: Dataset, tmp_path: Path) -> None:
    text = "train0 Q0 d9 0 1.0 x\ntrain0 Q0 d1 0 2.0 x\ntrain0 Q0 d5 0 1.0 x\n"  # a run that never filled in ranks
    report = import_scores(write(text), dataset, tmp_path / "root", name="x")
    assert [doc for doc, _ in imported(report.lists, report.job_id)["train0"]] == ["d1", "d9", "d5"]


def test_export_then_import_is_the_same_ranking_with_the_same_bits(dataset: Dataset, tmp_path: Path) -> None:
    exported = Exporter(table_below(tmp_path / "root", dataset), dataset, tmp_path)("trec")
    report = import_scores(exported.data("run.trec"), dataset, tmp_path / "root", name="back")
    expected = {
        query: [(doc, logit(query, doc)) for doc, _, _ in sorted(LISTS[query], key=lambda item: -item[1])]
        for query in LISTS
        if LISTS[query]
    }
    assert imported(report.lists, report.job_id) == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_any_float32_survives_the_text(
    scores: list[float], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    ordered = sorted(map(float, scores), reverse=True)
    lines = [f"train0 Q0 d{i} {i + 1} {np.float32(score)!s} x\n" for i, score in enumerate(ordered)]
    path = folder / "run.trec"
    path.write_text("".join(lines), encoding="utf-8")
    report = import_scores(path, dataset, folder / "root", name="x")
    expected = [(f"d{i}", score) for i, score in enumerate(ordered)]
    assert imported(report.lists, report.job_id)["train0"] == expected
