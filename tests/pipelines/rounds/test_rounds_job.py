"""A whole job, end to end and in this process: what a user gets, and what it was allowed to learn from."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from jobs_for_tests import list_rows, run, student_bytes
from lists_for_tests import candidates_of
from tiny import NUM_POOL, NUM_TEST, NUM_TRAIN, RecordingJournal, tiny_spec

from pipelines import control
from pipelines.candidates.miner import mine_once
from pipelines.corpus.dataset import Dataset
from pipelines.errors import CheckpointError, DataError, ModelError
from pipelines.evaluation.result import EvaluationResult
from pipelines.queries import training_queries
from pipelines.ranked.schema import EVALUATION_ROUND
from pipelines.training.loop import LoopSettings
from pipelines.training.settings import loop_settings

NUM_QUERIES = NUM_TRAIN + NUM_POOL


@dataclasses.dataclass(frozen=True)
class Finished:
    """A job that ran to its end."""

    root: Path
    result: dict[str, Any]
    journal: RecordingJournal


@pytest.fixture(scope="module")
def two_rounds(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root, journal = tmp_path_factory.mktemp("two_rounds"), RecordingJournal()
    spec = tiny_spec(rounds=2, evaluation={"label_only_control": True})
    return Finished(root, run(tiny_root, root, spec, journal=journal), journal)


def test_the_result_compares_all_systems_on_the_test_queries(two_rounds: Finished) -> None:
    result = EvaluationResult.from_dict(two_rounds.result["evaluation"])
    assert result.num_queries == NUM_TEST
    assert result.num_documents == 60
    assert set(result.systems) == {"bm25", "student_before", "label_only", "student_after", "teacher_rerank"}
    assert all(0 <= value <= 1 for measures in result.systems.values() for value in measures.values())
    assert result.systems["bm25"]["nDCG@10"] > 0.5, "topic and aspect name the document: BM25 must find it"
    assert len(result.comparisons) == 4
    assert json.loads(json.dumps(two_rounds.result)) == two_rounds.result, "a result is plain JSON"


def test_the_facts_say_what_was_done(two_rounds: Finished) -> None:
    facts = two_rounds.result["facts"]
    assert facts["training queries"] == f"{NUM_TRAIN} labelled, {NUM_POOL} unlabelled"
    assert facts["seed"] == "3"
    assert "teacher, openvino fp32, 48 tokens" in facts["teacher"]


def test_the_student_loads_and_searches(two_rounds: Finished, dataset: Dataset) -> None:
    from sentence_transformers import SentenceTransformer

    artifacts = two_rounds.root / "jobs" / "job" / "artifacts"
    student = SentenceTransformer(str(artifacts / "student"), device="cpu")
    documents = student.encode_document(dataset.passages())
    query_ids = dataset.labelled_queries("test")
    scores = student.encode_query([dataset.query_text(query) for query in query_ids]) @ documents.T
    best = {
        query: dataset.documents["doc_id"][int(row.argmax())].as_py()
        for query, row in zip(query_ids, scores, strict=True)
    }
    # The exported folder ranks as the student that was measured.
    per_query = json.loads((artifacts / "metrics.json").read_text(encoding="utf-8"))["per_query"]["student_after"]
    judged = dataset.judged("test")
    first = {query for query, doc in best.items() if judged[query].get(doc, 0) > 0}
    assert {query for query, value in per_query["RR@10"].items() if value == 1} == first


def test_report_and_metrics_are_written(two_rounds: Finished) -> None:
    artifacts = two_rounds.root / "jobs" / "job" / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == ["metrics.json", "report.html", "student"]
    metrics = json.loads((artifacts / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["evaluation"] == two_rounds.result["evaluation"]
    assert "<svg" in (artifacts / "report.html").read_text(encoding="utf-8")


def test_each_training_query_is_in_each_round_once_and_no_test_query_is(two_rounds: Finished, dataset: Dataset) -> None:
    rows = list_rows(two_rounds.root)
    counted = Counter((row["round"], row["query_id"]) for row in rows)
    assert set(counted.values()) == {1}
    test = set(dataset.labelled_queries("test"))
    training = {row["query_id"] for row in dataset.queries.to_pylist()} - test
    for number, expected in ((0, training), (1, training), (EVALUATION_ROUND, test)):
        assert {query for found, query in counted if found == number} == expected


def test_labels_are_in_the_lists_of_labelled_queries_only(two_rounds: Finished, dataset: Dataset) -> None:
    # Unlabelled means null, not 0; and the lists of test queries must not carry, or be built from, test labels.
    judged = dataset.judged("train")
    for row in list_rows(two_rounds.root):
        found = {item["doc_id"]: item["relevance"] for item in row["candidates"] if item["relevance"] is not None}
        labels = judged.get(row["query_id"], {})
        assert found == {doc: grade for doc, grade in labels.items() if grade > 0 or doc in found}
        logits = [item["teacher_logit"] for item in row["candidates"]]
        assert logits == sorted(logits, reverse=True)


def test_test_lists_are_what_the_search_found_and_no_more(two_rounds: Finished) -> None:
    for row in list_rows(two_rounds.root):
        if row["round"] == EVALUATION_ROUND:
            assert len(row["candidates"]) <= 5
            assert all(item["bm25_rank"] is not None or item["dense_rank"] is not None for item in row["candidates"])


def test_the_second_round_mines_with_the_student_of_the_first(two_rounds: Finished) -> None:
    scores: dict[int, dict[tuple[str, str], float]] = {0: {}, 1: {}}
    for row in list_rows(two_rounds.root):
        for item in row["candidates"]:
            if row["round"] in scores and item["student_score"] is not None:
                scores[row["round"]][row["query_id"], item["doc_id"]] = item["student_score"]
    both = scores[0].keys() & scores[1].keys()
    assert both
    assert np.mean([scores[0][pair] != scores[1][pair] for pair in both]) > 0.9


def test_phases_and_events_come_in_order(two_rounds: Finished) -> None:
    phases = ["mining", "teacher_training", "tokenizing", "scoring_and_training", "evaluating", "publishing"]
    assert two_rounds.journal.phases == phases
    rounds = [data["round"] for data in two_rounds.journal.named("training.finished")]
    assert rounds == [0, 1]
    numbers = two_rounds.journal.numbers
    assert numbers["lists_committed"] == numbers["lists_total"] == NUM_QUERIES + NUM_TEST
    assert numbers["step"] == numbers["total_steps"] == NUM_QUERIES / 4
    assert numbers["pairs_scored"] + numbers["pairs_reused"] == numbers["pairs_total"]
    assert numbers["pairs_reused"] > 0, "the second round meets pairs of the first"


def test_a_second_job_scores_no_pair_and_makes_the_same_student(tiny_root: Path, tmp_path: Path) -> None:
    run(tiny_root, tmp_path, job_id="first")
    journal = RecordingJournal()
    run(tiny_root, tmp_path, job_id="second", journal=journal)
    assert journal.numbers["pairs_scored"] == 0
    assert student_bytes(tmp_path, "first") == student_bytes(tmp_path, "second")
    # Another seed is another student: equality above is no accident of a student that does not learn.
    run(tiny_root, tmp_path, tiny_spec(seed=4), job_id="third")
    assert student_bytes(tmp_path, "third") != student_bytes(tmp_path, "first")


def test_lists_may_be_kept_elsewhere_and_shared_by_roots(tiny_root: Path, tmp_path: Path) -> None:
    journal, elsewhere = RecordingJournal(), str(tmp_path / "lists")
    run(tiny_root, tmp_path / "one", lists_url=elsewhere)
    run(tiny_root, tmp_path / "two", lists_url=elsewhere, job_id="second", journal=journal)
    assert journal.numbers["pairs_scored"] == 0
    assert not (tmp_path / "one" / "ranked_lists").exists()
    assert len(list_rows(tmp_path / "lists", "second")) == len(list_rows(tmp_path / "lists")) > 0


def test_a_trained_teacher_and_its_scores_serve_the_next_job(tiny_root: Path, tmp_path: Path) -> None:
    train = {"max_steps": 4, "lists_per_step": 3, "negatives_per_list": 3, "dtype": "fp32"}
    spec = tiny_spec(teacher={"model": {"id": "encoder"}, "train": train})
    first, second = RecordingJournal(), RecordingJournal()
    run(tiny_root, tmp_path, spec, job_id="first", journal=first)
    # Retuning the student is what a second job is for.
    retuned = tiny_spec(
        teacher={"model": {"id": "encoder"}, "train": train},
        training={"objective": [{"name": "cprd"}], "learning_rate": 1e-3},
    )
    run(tiny_root, tmp_path, retuned, job_id="second", journal=second)
    assert first.named("teacher.training.finished")
    assert second.named("teacher.reused")
    assert "teacher_step" not in second.numbers
    assert second.numbers["pairs_scored"] == 0
    assert student_bytes(tmp_path, "first") != student_bytes(tmp_path, "second")


def test_without_a_test_split_there_is_a_student_and_no_claim(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(dataset={"path": "data", "test_split": None, "unlabelled": {"max_queries": 5}})
    result = run(tiny_root, tmp_path, spec)
    assert result["evaluation"] is None
    assert student_bytes(tmp_path)
    assert {row["round"] for row in list_rows(tmp_path)} == {0}


def test_without_any_label_the_teachers_word_is_enough(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(dataset={"path": "data", "train_split": None}, evaluation={"label_only_control": True})
    result = run(tiny_root, tmp_path, spec)
    assert "label_only" not in result["evaluation"]["systems"], "there are no labels to train a control on"
    assert all(item["relevance"] is None for row in list_rows(tmp_path) for item in row["candidates"])
    assert len([row for row in list_rows(tmp_path) if row["round"] == 0]) == NUM_QUERIES


def test_a_missing_data_set_says_what_to_give(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(dataset={"path": "no/such/folder"})
    with pytest.raises(DataError, match=r"dataset\.path: there is no folder 'no/such/folder'.*BEIR"):
        run(tiny_root, tmp_path, spec)


def test_a_teacher_that_is_none_says_what_to_give(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a sequence-classification.*teacher\.train"):
        run(tiny_root, tmp_path, tiny_spec(teacher={"model": {"id": "encoder"}}))


def test_training_queries_are_seeded_limited_and_never_held_out(dataset: Dataset) -> None:
    queries = training_queries(tiny_spec(), dataset)
    assert queries == training_queries(tiny_spec(), dataset)
    assert queries != training_queries(tiny_spec(seed=4), dataset)
    assert sorted(queries) == sorted(training_queries(tiny_spec(seed=4), dataset))
    assert not {query for query in queries if query.startswith("test")}
    limited = tiny_spec(dataset={"path": "data", "unlabelled": {"max_queries": 6}})
    assert Counter(query[:4] for query in training_queries(limited, dataset)) == {"trai": NUM_TRAIN, "pool": 6}
    unused = tiny_spec(dataset={"path": "data", "unlabelled": {"use": False}})
    assert Counter(query[:4] for query in training_queries(unused, dataset)) == {"trai": NUM_TRAIN}
    # A limit must not take the same first ones whatever the seed.
    other = limited.model_copy(update={"seed": 4})
    assert set(training_queries(limited, dataset)) != set(training_queries(other, dataset))


@pytest.mark.parametrize(("epochs", "queries", "steps"), [(1, 32, 8), (1, 33, 9), (2, 33, 17), (3, 1, 1)])
def test_steps_are_those_the_stream_has(epochs: int, queries: int, steps: int) -> None:
    # One step too many in the plan, and the learning rate never reaches zero; batches run on across epochs.
    spec = tiny_spec(training={"queries_per_step": 4, "candidates_per_query": 4, "epochs": epochs})
    assert loop_settings(spec, queries).total_steps == steps


def test_the_last_step_is_the_planned_one_with_two_epochs(tiny_root: Path, tmp_path: Path) -> None:
    journal = RecordingJournal()
    training = {"epochs": 2, "queries_per_step": 5, "candidates_per_query": 4}
    run(tiny_root, tmp_path, tiny_spec(training=training), journal=journal)
    assert journal.numbers["step"] == journal.numbers["total_steps"] == 13


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_control_takes_as_many_steps_as_the_job(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    steps: list[int] = []

    def note(*arguments: Any) -> None:
        steps.extend(item.total_steps for item in arguments if isinstance(item, LoopSettings))

    monkeypatch.setattr(control, "train_label_only", note)
    run(tiny_root, tmp_path, tiny_spec(rounds=rounds, evaluation={"label_only_control": True}))
    assert steps == [rounds * NUM_QUERIES // 4]


def test_candidates_are_mined_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def mine() -> list[pa.Table]:
        calls.append(1)
        return [candidates_of({"q": ["d"]})]

    path = tmp_path / "work" / "candidates.parquet"
    path.parent.mkdir()
    path.with_name(f".{path.name}.partial").write_bytes(b"an earlier attempt died here")
    assert mine_once(path, mine).read() == mine_once(path, mine).read()
    assert calls == [1]
    assert [entry.name for entry in path.parent.iterdir()] == ["candidates.parquet"]


def test_a_job_does_not_go_on_over_changed_data(tiny_root: Path, tmp_path: Path) -> None:
    """Its candidates, scores and checkpoints were made from the old texts: going on would mix the two in silence."""
    shutil.copytree(tiny_root, tmp_path / "data-root")
    run(tmp_path / "data-root", tmp_path / "root")
    corpus = tmp_path / "data-root" / "data" / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("rare", "common"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="changed since this job began"):
        run(tmp_path / "data-root", tmp_path / "root")


def test_a_student_without_labels_gets_no_help_from_them(tiny_root: Path, tmp_path: Path) -> None:
    """Gold documents slipped into the lists, or copies of gold left out of them, would be labels by another way."""
    run(tiny_root, tmp_path / "root", tiny_spec(training={"use_labels": False}))
    rows = [row for row in list_rows(tmp_path / "root") if row["round"] == 0]
    assert len(rows) == NUM_QUERIES
    for row in rows:
        for item in row["candidates"]:
            assert item["relevance"] is None
            assert item["bm25_rank"] is not None or item["dense_rank"] is not None


def test_a_teacher_that_is_never_sure_is_an_error_when_nothing_else_teaches(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(
        dataset={"train_split": None, "unlabelled": {"min_confidence": 1.0}},
        training={"objective": [{"name": "info_nce"}]},
    )
    with pytest.raises(DataError, match=r"min_confidence 1\.0"):
        run(tiny_root, tmp_path / "root", spec)


def test_a_query_that_no_pair_has_room_for_ends_the_job_before_it_trains(tiny_root: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_root, tmp_path / "roots")
    queries = tmp_path / "roots" / "data" / "queries.jsonl"
    lines = [json.loads(line) for line in queries.read_text(encoding="utf-8").splitlines()]
    lines[3]["text"] += "," * 60
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    journal = RecordingJournal()
    with pytest.raises(DataError, match=f"1 queries leave no room .* '{lines[3]['_id']}'"):
        run(tmp_path / "roots", tmp_path, tiny_spec(), journal=journal)
    assert journal.phases == ["mining"]
