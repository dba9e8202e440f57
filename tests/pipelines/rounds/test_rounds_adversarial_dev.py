"""Adversarial rounds that are measured: when they end, which student and ranker they leave, what is said of each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from jobs_for_tests import job_work, list_rows, run, student_bytes
from sentence_transformers import CrossEncoder, SentenceTransformer
from test_rounds_adversarial import adversarial_spec, ranker_bytes
from tiny import RecordingJournal, tiny_dataset

from pipelines.evaluation.metrics import evaluate, means
from pipelines.model_files import weights_hash
from pipelines.spec import DistillationSpec
from pipelines.student.model import load_student
from pipelines.training.dev_set import DevSet

COUNT = 5


def dev_spec() -> DistillationSpec:
    """Steps so large that the student gets worse; the tiny set's test split is its dev split."""
    return adversarial_spec(
        dataset={"dev_split": "test", "test_split": None},
        rounds={"count": COUNT},
        training={"learning_rate": 5e-2, "objective": [{"name": "ar2", "temperature": 0.1}]},
        evaluation={"dev": {"patience": 1, "pool_depth": 6}, "rerank_depth": 4},
    )


class Played:
    def __init__(self, data_root: Path, root: Path) -> None:
        self.root, self.journal = root, RecordingJournal()
        self.result = run(data_root, root, dev_spec(), journal=self.journal)
        self.work = root / "jobs/job/work"
        self.before: dict[str, Any] = self.result["rounds"][0]
        self.rounds: list[dict[str, Any]] = self.result["rounds"][1:]
        self.values = [each["student"]["nDCG@10"] for each in self.rounds]
        self.best = self.values.index(max(self.values))


@pytest.fixture(scope="module")
def played(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tiny_root, tmp_path_factory.mktemp("played"))


def test_it_ends_when_the_student_no_longer_gets_better(played: Played) -> None:
    (stopped,) = played.journal.named("rounds.stopped")
    assert len(played.rounds) == played.best + 2 < COUNT
    assert (stopped["best_round"], stopped["rounds"]) == (played.best, len(played.rounds))


def test_the_best_round_s_student_is_left_and_was_measured_right(played: Played, tiny_root: Path) -> None:
    student = SentenceTransformer(str(played.root / "jobs/job/artifacts/student"), device="cpu")
    dataset, dev = tiny_dataset(tiny_root / "data"), DevSet.load(played.work / "dev.json")
    queries = student.encode([dataset.query_text(q) for q in dev.qrels], normalize_embeddings=True)
    documents = student.encode([dataset.passage(d) for d in dev.pool], normalize_embeddings=True)
    scores = queries @ documents.T
    run_of = {q: dict(zip(dev.pool, map(float, scores[row]), strict=True)) for row, q in enumerate(dev.qrels)}
    measured = means(evaluate(dev.qrels, run_of, ("nDCG@10", "RR@10", "R@5")))
    assert measured == pytest.approx(played.rounds[played.best]["student"], abs=1e-6)


def test_so_is_the_ranker_of_that_round(played: Played, tiny_root: Path) -> None:
    version = played.rounds[played.best]["weights_version"]
    kept = played.work / "ranker" / f"version-{version}" / "model.safetensors"
    assert ranker_bytes(played.root) == kept.read_bytes()
    model = CrossEncoder(
        str(played.root / "jobs/job/artifacts/ranker"), max_length=48, activation_fn=torch.nn.Identity(), device="cpu"
    )
    dataset, dev = tiny_dataset(tiny_root / "data"), DevSet.load(played.work / "dev.json")
    run_of: dict[str, dict[str, float]] = {}
    for row in pq.read_table(played.work / "candidates-dev.parquet").to_pylist():
        doc_ids = [item["doc_id"] for item in row["candidates"][:4]]
        rest = [item["doc_id"] for item in row["candidates"][4:]]
        logits = model.predict([(dataset.query_text(row["query_id"]), dataset.passage(d)) for d in doc_ids])
        scores = dict(zip(doc_ids, map(float, logits), strict=True))
        run_of[row["query_id"]] = scores | {d: min(scores.values()) - 1 - n for n, d in enumerate(rest)}
    measured = means(evaluate(dev.qrels, run_of, ("nDCG@10", "RR@10", "R@5")))
    assert measured == pytest.approx(played.rounds[played.best]["ranker"], abs=1e-6)


def test_every_version_scored_the_same_dev_candidates(played: Played) -> None:
    rows = [row for row in list_rows(played.root) if row["round"] <= -10]
    versions = {row["weights_version"] for row in rows}
    assert versions == set(range(len(played.rounds) + 1))
    pairs = [
        {(row["query_id"], item["doc_id"]) for row in rows if row["weights_version"] == v for item in row["candidates"]}
        for v in versions
    ]
    assert all(each == pairs[0] for each in pairs)


def test_rounds_say_how_much_their_candidates_have_in_common(played: Played) -> None:
    overlaps = [each["list_overlap"] for each in played.rounds]
    assert overlaps[0] is None
    assert all(0 < overlap < 1 for overlap in overlaps[1:])
    assert all(np.isfinite(each["entropy"]) for each in played.rounds)
    assert played.before["dev_overlap"] is None
    assert all(0 < each["dev_overlap"] < 1 for each in played.rounds)
    assert not list(played.work.glob("mined-*"))


def test_where_both_began_is_said_too(played: Played, tiny_root: Path) -> None:
    assert played.before["round"] == -1
    assert played.before["weights_version"] == 0
    assert played.before["hardness"] is None
    assert played.before["ranker"] != played.rounds[0]["ranker"]
    student = load_student(tiny_root / "encoder", dev_spec().student, dropout=0.0, device=torch.device("cpu"))
    dataset, dev = tiny_dataset(tiny_root / "data"), DevSet.load(played.work / "dev.json")
    queries = student.encode([dataset.query_text(q) for q in dev.qrels], "query")
    documents = student.encode([dataset.passage(d) for d in dev.pool], "document")
    run_of = {
        q: dict(zip(dev.pool, map(float, row), strict=True))
        for q, row in zip(dev.qrels, queries @ documents.T, strict=True)
    }
    assert means(evaluate(dev.qrels, run_of, ("R@5",)))["R@5"] == pytest.approx(played.before["student"]["R@5"])


@pytest.mark.parametrize(("name", "value"), [("step", 9), ("ranker_step", 5)])
def test_killed_and_resumed_it_ends_in_the_same_round(
    played: Played, tiny_root: Path, tmp_path: Path, name: str, value: int
) -> None:
    journal = RecordingJournal()

    def crash(numbers: dict[str, float | str]) -> None:
        if numbers.get(name) == value:
            raise KeyboardInterrupt

    journal.on_progress = crash
    with pytest.raises(KeyboardInterrupt):
        run(tiny_root, tmp_path, dev_spec(), journal=journal)
    again = run(tiny_root, tmp_path, dev_spec())
    assert again["rounds"] == [played.before, *played.rounds]
    assert student_bytes(tmp_path) == student_bytes(played.root)
    states = [json.loads(path.read_text()) for path in sorted((job_work(tmp_path) / "rounds").glob("round-*.json"))]
    hashes = {int(version): found for version, found in again["ranker_versions"].items()}
    assert hashes[0] == weights_hash(tiny_root / "teacher")
    assert hashes == {0: hashes[0]} | {state["weights_version"]: state["weights_hash"] for state in states}
    assert len(set(hashes.values())) == len(played.rounds) + 1
