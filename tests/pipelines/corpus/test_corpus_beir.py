"""A BEIR folder in every allowed file format gives one data set; a broken one is refused by line and id."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.corpus.dataset import load_dataset
from pipelines.errors import DataError
from pipelines.spec import DatasetSpec

DOCUMENTS: list[dict[str, Any]] = [
    {"_id": "d1", "title": "Gout", "text": " Uric acid crystals.\u2028Second line "},
    {"_id": "d2", "text": "No title here"},
    {"_id": "d3", "title": "Only a title", "text": ""},
    {"_id": "d4", "title": None, "text": "é ☃", "metadata": {"kept": "out"}},
]
QUERIES: list[dict[str, Any]] = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)]
HEADER = "query-id\tcorpus-id\tscore\n"
TRAIN = HEADER + "q0\td1\t1\nq0\td2\t0\nq1\td2\t0\n"
TEST = HEADER + "q2\td3\t2\n"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def beir(folder: Path, **files: bytes | str) -> Path:
    """Write a good folder; `files` replaces single files (dots and slashes written as in the name's key)."""
    content: dict[str, bytes | str] = {
        "corpus.jsonl": lines(DOCUMENTS),
        "queries.jsonl": lines(QUERIES),
        "qrels/train.tsv": TRAIN,
        "qrels/test.tsv": TEST,
    } | files
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def spec(**fields: Any) -> DatasetSpec:
    return DatasetSpec(path="my/data", **fields)


def test_texts_arrive_untouched_and_splits_are_kept_apart(tmp_path: Path) -> None:
    dataset = load_dataset(spec(), beir(tmp_path / "toy"))
    assert dataset.name == "toy"
    assert dataset.documents["text"].to_pylist() == [row["text"] for row in DOCUMENTS]
    assert dataset.judged("train") == {"q0": {"d1": 1, "d2": 0}, "q1": {"d2": 0}}
    assert dataset.judged("test") == {"q2": {"d3": 2}}


def test_gzip_and_parquet_equal_plain_json_lines(tmp_path: Path) -> None:
    plain = load_dataset(spec(), beir(tmp_path / "plain"))
    packed = beir(tmp_path / "packed", **{"corpus.jsonl.gz": gzip.compress(lines(DOCUMENTS))})
    (packed / "corpus.jsonl").unlink()
    columns = beir(tmp_path / "columns")
    full = [{"_id": d["_id"], "title": d.get("title"), "text": d["text"]} for d in DOCUMENTS]
    pq.write_table(pa.Table.from_pylist(full), columns / "corpus.parquet")
    pq.write_table(pa.Table.from_pylist(QUERIES), columns / "queries.parquet")
    judged = [{"query-id": "q2", "corpus-id": "d3", "score": 2}]
    pq.write_table(pa.Table.from_pylist(judged), columns / "qrels/test.parquet")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (columns / name).unlink()
    for folder in (packed, columns):
        other = load_dataset(spec(), folder)
        assert other.fingerprint == plain.fingerprint
        assert other.qrels.equals(plain.qrels)


def test_only_named_splits_are_opened_so_hidden_labels_stay_hidden(tmp_path: Path) -> None:
    folder = beir(tmp_path, **{"qrels/pool.tsv": "this would not even parse"})
    dataset = load_dataset(spec(), folder)
    assert dataset.splits == ["train", "test"]
    assert dataset.unlabelled_queries("train", "test") == ["q3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "corpus.jsonl",
            lines(DOCUMENTS + DOCUMENTS[:1]),
            "corpus.jsonl, line 5: duplicate document id 'd1'",
        ),
        ("queries.jsonl", lines(QUERIES + QUERIES[1:2]), "queries.jsonl, line 5: duplicate query id 'q1'"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "\xff"}\n', "line 2: not UTF-8"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "a"}\n\n{"_id": "d2", \n', "line 3: not JSON"),
        ("corpus.jsonl", b'["d1"]\n', "line 1: expected a JSON object, got list"),
        ("corpus.jsonl", b'{"text": "a"}\n', "line 1: missing '_id'"),
        ("corpus.jsonl", b'{"_id": 7, "text": "a"}\n', "line 1: '_id' must be a string, got 7 (int)"),
        ("corpus.jsonl", b'{"_id": "d\\t1", "text": "a"}\n', "holds a tab or a line break"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "\\ud800"}\n', "line 1: 'text' cannot be written as UTF-8"),
        ("corpus.jsonl", b'{"_id": "d1", "text": " "}\n', "line 1: document 'd1' has neither title nor text"),
        ("corpus.jsonl", b"", "corpus.jsonl: holds no document"),
        (
            "queries.jsonl",
            b'{"_id": "q0", "text": ""}\n',
            "queries.jsonl, line 1: query 'q0' has an empty text",
        ),
        ("qrels/test.tsv", HEADER + "q9\td1\t1\n", "qrels/test.tsv, line 2: query id 'q9'"),
        ("qrels/test.tsv", HEADER + "q2\td9\t1\n", "qrels/test.tsv, line 2: document id 'd9' (query 'q2')"),
        ("qrels/test.tsv", HEADER + "q2\td1\t0.5\n", "line 2: the score must be an integer, got '0.5'"),
        ("qrels/test.tsv", HEADER + "q2\td1\t300\n", "line 2: the score 300 is outside -128..127"),
        ("qrels/test.tsv", HEADER + "q2\td1\n", "line 2: expected 3 tab-separated fields, got 2"),
        (
            "qrels/test.tsv",
            HEADER + "q2\td1\t1\nq2\td1\t0\n",
            "judged 0 here and 1 in qrels/test.tsv, line 2",
        ),
        ("qrels/test.tsv", "q2\td1\t1\n", "qrels/test.tsv, line 1: expected the header"),
        ("qrels/test.tsv", HEADER, "qrels/test.tsv: holds no judgement"),
        ("qrels/test.tsv", HEADER + "q2\td1\t0\n", "split 'test' has no judgement above 0"),
        ("qrels/test.tsv", HEADER + "q0\td2\t1\n", "query 'q0' is judged in both 'train' and 'test'"),
        ("corpus.jsonl.gz", gzip.compress(b"{}", mtime=0), "corpus.jsonl and corpus.jsonl.gz are both in"),
        ("queries.parquet", b"not parquet", "queries.jsonl and queries.parquet are both in"),
    ],
)
def test_a_broken_folder_is_refused_by_file_line_and_id(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    folder = beir(tmp_path, **{name: content})
    with pytest.raises(DataError) as refused:
        load_dataset(spec(), folder)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("corpus.jsonl.gz", gzip.compress(lines(DOCUMENTS), mtime=0)[:-20], "corpus.jsonl.gz: cannot be read"),
        ("corpus.jsonl.gz", lines(DOCUMENTS), "corpus.jsonl.gz: cannot be read"),
        ("corpus.parquet", b"PAR1 no", "corpus.parquet: cannot be read as Parquet"),
    ],
)
def test_damaged_containers_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = beir(tmp_path, **{name: data})
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=message):
        load_dataset(spec(), folder)


def test_a_missing_split_lists_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'dev' .*splits that exist: test, train"):
        load_dataset(spec(dev_split="dev"), beir(tmp_path))


def test_a_missing_folder_is_said_in_the_users_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.path: there is no folder 'my/data'"):
        load_dataset(spec(), tmp_path / "nowhere")


def test_a_folder_that_is_no_data_set_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"is not a BEIR folder: it has none of corpus\.jsonl, corpus\.jsonl\.gz"):
        load_dataset(spec(), tmp_path)
    folder = beir(tmp_path / "half")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"it has none of queries\.jsonl"):
        load_dataset(spec(), folder)
