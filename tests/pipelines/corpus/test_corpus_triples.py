"""Parquet triples: ids follow from texts, given ids are checked, and contradictions are refused by row."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.dataset import load_dataset
from pipelines.corpus.triples import text_id
from pipelines.errors import DataError
from pipelines.spec import DatasetSpec

ROWS = [
    {"query": "what is gout", "positive": "uric acid", "negative": "a fever"},
    {"query": "what is gout", "positive": "uric acid", "negative": "a cough"},
    {"query": "what is flu", "positive": "a fever", "negative": None},
]
SPEC = DatasetSpec(path="triples.parquet", test_split=None)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_equal_texts_are_one_document_with_a_stable_id(tmp_path: Path) -> None:
    dataset = load_dataset(SPEC, write(tmp_path / "triples.parquet", ROWS))
    assert dataset.name == "triples"
    assert dataset.passages() == ["uric acid", "a fever", "a cough"]
    gout, flu = text_id("q", "what is gout"), text_id("q", "what is flu")
    acid, fever, cough = (text_id("d", text) for text in dataset.passages())
    assert dataset.judged("train") == {gout: {acid: 1, fever: 0, cough: 0}, flu: {fever: 1}}
    # Pinned: a job stored yesterday must find the same ids tomorrow.
    assert acid == "d-e47bbacb9d4597f0312117a5ed8e11b8"


def test_shards_and_the_name_anchor_give_the_same_data_set(tmp_path: Path) -> None:
    whole = load_dataset(SPEC, write(tmp_path / "triples.parquet", ROWS))
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "0.parquet", ROWS[:1])
    write(
        folder / "1.parquet",
        [{"anchor": r["query"], **{k: r[k] for k in ("positive", "negative")}} for r in ROWS[1:]],
    )
    assert load_dataset(SPEC, folder).fingerprint == whole.fingerprint


def test_given_ids_are_used_and_pairs_need_no_negative(tmp_path: Path) -> None:
    rows = [{"query": "what", "query_id": "q1", "positive": "this", "positive_id": "d1"}]
    dataset = load_dataset(SPEC, write(tmp_path / "pairs.parquet", rows))
    assert dataset.judged("train") == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "a"}], "there is no column 'positive'; columns: query"),
        ([{"positive": "a"}], "there is no column 'query'"),
        ([*ROWS, {"query": "x", "positive": " ", "negative": None}], "row 4: document 'd-"),
        ([*ROWS, {"query": None, "positive": "x", "negative": None}], "row 4: missing 'query'"),
        ([*ROWS, {"query": "what is flu", "positive": "a cough", "negative": "a fever"}], "row 4: query 'q-"),
        (
            [
                {"query": "a", "positive": "x", "positive_id": "d"},
                {"query": "b", "positive": "y", "positive_id": "d"},
            ],
            "row 2: positive_id 'd' came with another text before",
        ),
        ([{"query": "a", "positive": 3}], "row 1: 'positive' must be a string, got 3"),
    ],
)
def test_what_cannot_be_right_is_refused_by_row(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError) as refused:
        load_dataset(SPEC, write(tmp_path / "triples.parquet", rows))
    assert message in str(refused.value)
    assert "triples.parquet" in str(refused.value)


def test_asking_for_a_test_split_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'test': triples hold only 'train'; set the split to null"):
        load_dataset(DatasetSpec(path="t"), write(tmp_path / "triples.parquet", ROWS))


def test_bad_utf8_in_parquet_is_refused(tmp_path: Path) -> None:
    array = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"query": array, "positive": pa.array(["x"])}), tmp_path / "triples.parquet")
    with pytest.raises(DataError, match="not UTF-8"):
        load_dataset(SPEC, tmp_path / "triples.parquet")
