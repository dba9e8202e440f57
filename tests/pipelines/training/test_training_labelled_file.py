"""Labelled candidates in a file teach what the same table teaches, and name the same teacher."""

import hashlib
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pytest
from tiny import tiny_spec

from pipelines.candidates.file import CandidatesFile, write_candidates
from pipelines.corpus.dataset import Dataset
from pipelines.model_files import weights_hash
from pipelines.ranked.tail import StreamPosition
from pipelines.training import labelled as module
from pipelines.training.labelled import labelled_rows
from pipelines.training.teacher import teacher_key


@pytest.fixture
def in_file(labelled: pa.Table, tmp_path: Path) -> CandidatesFile:
    parts = (labelled.slice(start, 5) for start in range(0, len(labelled), 5))
    return write_candidates(tmp_path / "candidates.parquet", parts)


def test_rows_of_a_file_are_those_of_the_table(
    labelled: pa.Table, in_file: CandidatesFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)
    found, expected = (
        itertools.islice(labelled_rows(candidates, start=StreamPosition(0, 4), seed=2), 30)
        for candidates in (in_file, labelled)
    )
    judged = dict(zip(labelled["query_id"].to_pylist(), labelled["candidates"].to_pylist(), strict=True))
    for (mine, after), (given, then) in zip(found, expected, strict=True):
        assert (mine.query_id, mine.place, after) == (given.query_id, given.place, then)
        items = judged[mine.query_id]
        assert mine.doc_ids.tolist() == given.doc_ids.tolist() == [item["doc_id"] for item in items]
        grades = [-1 if item["relevance"] is None else item["relevance"] for item in items]
        assert mine.relevance.tolist() == given.relevance.tolist() == grades
        assert mine.teacher_logits.tolist() == [0.0] * len(items)


def test_lists_without_a_positive_or_without_another_are_left_out(labelled: pa.Table, in_file: CandidatesFile) -> None:
    alone = labelled["candidates"].to_pylist()
    alone[1] = [item for item in alone[1] if item["relevance"]]
    alone[2] = [item for item in alone[2] if not item["relevance"]]
    alone[3] = []
    table = labelled.set_column(1, labelled.schema.field(1), pa.array(alone, labelled.schema.field(1).type))
    rows = itertools.islice(labelled_rows(table, start=StreamPosition(), seed=0), len(labelled) - 3)
    names = labelled["query_id"].to_pylist()
    assert sorted(row.query_id for row, _ in rows) == sorted(set(names) - set(names[1:4]))


def test_a_teacher_is_named_by_one_json_array_of_all_that_decided_it(
    labelled: pa.Table, in_file: CandidatesFile, dataset: Dataset, encoder_folder: Path
) -> None:
    spec = tiny_spec(teacher={"model": {"id": "encoder"}, "train": {"max_steps": 2}}).teacher
    lists = [
        [query_id, [[item["doc_id"], item["relevance"]] for item in items]]
        for query_id, items in zip(labelled["query_id"].to_pylist(), labelled["candidates"].to_pylist(), strict=True)
    ]
    assert spec.train is not None
    settings = [spec.train.model_dump(mode="json", exclude={"workers"}), spec.max_length, spec.truncation, 7]
    whole = json.dumps([weights_hash(encoder_folder), dataset.fingerprint, lists, *settings])
    expected = hashlib.sha256(whole.encode()).hexdigest()[:32]
    for candidates in (labelled, in_file):
        assert teacher_key(encoder_folder, dataset, candidates, spec, seed=7) == expected
