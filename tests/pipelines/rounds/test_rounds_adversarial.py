"""Whole AR2 jobs: which weights scored what, what is left at the end, and that being killed changes nothing."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs_for_tests import job_work, list_rows, run, student_bytes
from tiny import RecordingJournal, tiny_dataset, tiny_spec

from pipelines import control
from pipelines.spec import DistillationSpec

COUNT, RANKER_STEPS, STUDENT_STEPS = 2, 4, 8
"""32 training queries, 4 a step."""


def adversarial_spec(*, adversarial: dict[str, Any] | None = None, **sections: Any) -> DistillationSpec:
    ranker = {"steps_per_round": RANKER_STEPS, "queries_per_step": 3, "learning_rate": 3e-3, "dropout": 0.1}
    ranker |= {"checkpoint_every_steps": 2, "dtype": "fp32"}
    settings = {"ranker": ranker, **(adversarial or {})}
    given: dict[str, Any] = {
        "rounds": {"count": COUNT, "mode": "adversarial", "adversarial": settings},
        "candidates": {"bm25": None, "dense": {"top_k": 12}, "max_candidates": 12, "queries_per_chunk": 5},
        "training": {
            "objective": [{"name": "ar2", "weight": 1.0}, {"name": "list_kl", "weight": 1.0}],
            "queries_per_step": 4,
            "candidates_per_query": 5,
            "learning_rate": 3e-3,
            "dropout": 0.1,
            "checkpoint_every_steps": 3,
        },
    }
    for name, fields in sections.items():
        given[name] = given.get(name, {}) | fields
    return tiny_spec(**given)


def ranker_bytes(root: Path) -> bytes:
    return (root / "jobs" / "job" / "artifacts" / "ranker" / "model.safetensors").read_bytes()


class Outcome:
    """A job that nobody disturbed."""

    def __init__(self, data_root: Path, root: Path, spec: DistillationSpec) -> None:
        self.root, self.journal = root, RecordingJournal()
        self.result = run(data_root, root, spec, journal=self.journal)
        self.rows = list_rows(root)


@pytest.fixture(scope="module")
def undisturbed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tiny_root, tmp_path_factory.mktemp("undisturbed"), adversarial_spec())


@pytest.fixture(scope="module")
def early(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    spec = adversarial_spec(adversarial={"refresh_steps_early": 3})
    return Outcome(tiny_root, tmp_path_factory.mktemp("early"), spec)


def test_every_list_was_scored_by_the_weights_of_its_round(tiny_root: Path, undisturbed: Outcome) -> None:
    from sentence_transformers import CrossEncoder

    versions = Counter((row["round"], row["weights_version"]) for row in undisturbed.rows)
    assert versions == {(-2, 0): 8, (-1, COUNT): 8, **{(number, number + 1): 32 for number in range(COUNT)}}
    dataset = tiny_dataset(tiny_root / "data")
    folders = {0: tiny_root / "teacher"}
    folders |= {v: job_work(undisturbed.root) / "ranker" / f"version-{v}" for v in range(1, COUNT + 1)}
    for version, folder in folders.items():
        model = CrossEncoder(str(folder), max_length=48, activation_fn=torch.nn.Identity(), device="cpu")
        pairs, logits = [], []
        for row in undisturbed.rows:
            if row["weights_version"] == version:
                query = dataset.query_text(row["query_id"])
                pairs += [(query, dataset.passage(item["doc_id"])) for item in row["candidates"]]
                logits += [item["teacher_logit"] for item in row["candidates"]]
        np.testing.assert_allclose(model.predict(pairs), logits, atol=2e-5)


@pytest.mark.parametrize("outcome", ["undisturbed", "early"])
def test_every_list_names_the_student_that_found_its_candidates(outcome: str, request: pytest.FixtureRequest) -> None:
    played: Outcome = request.getfixturevalue(outcome)
    miners = {(row["round"], row["miner"]) for row in played.rows}
    name = "round-0" if outcome == "undisturbed" else f"index-1-step-{STUDENT_STEPS - 3}"
    snapshot = job_work(played.root) / "snapshots" / f"{name}.safetensors"
    found = hashlib.sha256(snapshot.read_bytes()).hexdigest()
    assert miners == {(-2, "untrained"), (-1, "untrained"), (0, "untrained"), (1, found)}


def test_the_ranker_is_a_product(undisturbed: Outcome) -> None:
    last = job_work(undisturbed.root) / "ranker" / f"version-{COUNT}" / "model.safetensors"
    assert ranker_bytes(undisturbed.root) == last.read_bytes()
    systems = undisturbed.result["evaluation"]["systems"]
    assert {"ranker_before", "teacher_rerank"} <= set(systems)
    assert systems["ranker_before"] != systems["teacher_rerank"], "it learned"
    ranker = (undisturbed.root / "jobs/job/artifacts/ranker/README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-ranking" in ranker
    for title, name in (("before the rounds", "ranker_before"), ("after", "teacher_rerank")):
        assert f"| {title} | {systems[name]['nDCG@10']:.3f} |" in ranker
    assert f"- rounds: {COUNT} of {RANKER_STEPS} steps each, 4 negatives a query" in ranker
    report = (undisturbed.root / "jobs/job/artifacts/report.html").read_text(encoding="utf-8")
    assert "Round by round" in report
    for figures in undisturbed.result["rounds"]:
        assert f"<td>{figures['hardness']['ranker_margin']:.3f}</td>" in report
    card = (undisturbed.root / "jobs/job/artifacts/student/README.md").read_text(encoding="utf-8")
    assert f"in {COUNT} rounds" in card


def test_lists_hold_the_positives_and_so_many_negatives(tiny_root: Path, undisturbed: Outcome) -> None:
    judged = tiny_dataset(tiny_root / "data").judged("train")
    for row in undisturbed.rows:
        if row["round"] >= 0:
            positives = {doc for doc, grade in judged.get(row["query_id"], {}).items() if grade > 0}
            found = [item["doc_id"] for item in row["candidates"]]
            assert positives <= set(found)
            assert len(found) - len(positives) == 4
            assert len(set(found)) == len(found)


def test_negatives_are_new_in_every_round(undisturbed: Outcome) -> None:
    of_round = {
        number: {(row["query_id"], item["doc_id"]) for row in undisturbed.rows for item in row["candidates"]
                 if row["round"] == number}
        for number in range(COUNT)
    }  # fmt: skip
    assert of_round[0] != of_round[1]


def test_both_schedules_span_all_rounds(undisturbed: Outcome) -> None:
    """One warm-up, one fall to zero, for each: not one of each per round."""
    metrics = [data for kind, data in undisturbed.journal.events if kind == "training.finished"]
    assert [each["steps"] for each in metrics] == [STUDENT_STEPS * (number + 1) for number in range(COUNT)]
    assert undisturbed.journal.numbers["ranker_step"] == undisturbed.journal.numbers["ranker_total_steps"]
    assert undisturbed.journal.numbers["ranker_total_steps"] == COUNT * RANKER_STEPS
    assert undisturbed.journal.numbers["total_steps"] == COUNT * STUDENT_STEPS


class Crash(Exception):  # noqa: N818
    """Stands for kill -9."""


_PLACES = [
    ("undisturbed", "ranker_step", RANKER_STEPS + 3),
    ("undisturbed", "step", STUDENT_STEPS),
    ("undisturbed", "lists_committed", 15),
    ("early", "ranker_step", 2 * RANKER_STEPS),
    ("early", "step", STUDENT_STEPS - 1),
    ("early", "step", STUDENT_STEPS + 4),
]


@pytest.mark.parametrize(("outcome", "name", "value"), _PLACES)
def test_killed_anywhere_it_goes_on_to_the_same_models(
    tiny_root: Path, tmp_path: Path, outcome: str, name: str, value: int, request: pytest.FixtureRequest
) -> None:
    expected: Outcome = request.getfixturevalue(outcome)
    steps_early = 3 if outcome == "early" else 0
    spec = adversarial_spec(adversarial={"refresh_steps_early": steps_early})
    journal = RecordingJournal()

    def crash(numbers: dict[str, float | str]) -> None:
        if numbers.get(name) == value:
            raise Crash

    journal.on_progress = crash
    with pytest.raises(Crash):
        run(tiny_root, tmp_path, spec, journal=journal)
    run(tiny_root, tmp_path, spec)
    assert student_bytes(tmp_path) == student_bytes(expected.root)
    assert ranker_bytes(tmp_path) == ranker_bytes(expected.root)
    assert Counter((row["round"], row["query_id"]) for row in list_rows(tmp_path)) == Counter(
        (row["round"], row["query_id"]) for row in expected.rows
    )


def test_an_early_index_is_as_stale_as_was_said(undisturbed: Outcome, early: Outcome) -> None:
    assert [each["stale_steps"] for each in undisturbed.journal.named("index.refreshed")] == [0] * (COUNT - 1)
    assert [each["stale_steps"] for each in early.journal.named("index.refreshed")] == [3] * (COUNT - 1)
    assert student_bytes(early.root) != student_bytes(undisturbed.root), "other candidates"


def test_weight_zero_is_distillation_from_refreshed_negatives(tiny_root: Path, tmp_path: Path) -> None:
    """The adversarial term is computed and shown, and adds nothing."""
    objective = [{"name": "ar2", "weight": 0.0}, {"name": "list_kl", "weight": 1.0}]
    run(tiny_root, tmp_path, adversarial_spec(training={"objective": objective}, rounds={"count": 1}))
    lines = (job_work(tmp_path) / "learning_curve.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    assert len(points) == STUDENT_STEPS
    for point in points:
        assert point["loss"] == pytest.approx(point["loss.list_kl"])
        assert point["loss.ar2"] < 0


def test_the_official_code_s_loss_and_simans_make_a_whole_job(tiny_root: Path, tmp_path: Path) -> None:
    objective = [{"name": "ar2_code_compat", "adversarial_weight": 0.5, "temperature": 1.0}]
    spec = adversarial_spec(adversarial={"sampling": "simans"}, training={"objective": objective})
    run(tiny_root, tmp_path, spec)
    lines = (job_work(tmp_path) / "learning_curve.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss.ar2_code_compat"] for line in lines]
    assert len(losses) == COUNT * STUDENT_STEPS
    assert np.isfinite(losses).all()
    negatives = {item["doc_id"] for row in list_rows(tmp_path) if row["round"] == 1 for item in row["candidates"]}
    assert len(negatives) > 12, "drawn, not the same for all"


def test_the_control_has_as_many_steps_as_the_job(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def noted(*_: Any) -> None:
        settings = _[-1]
        seen.append((settings.total_steps, settings.last_step))

    monkeypatch.setattr(control, "train_label_only", noted)
    spec = adversarial_spec(adversarial={"queries_per_round": 12}, evaluation={"label_only_control": True})
    run(tiny_root, tmp_path, spec)
    assert seen == [(COUNT * 3, COUNT * 3)]


def test_lots_of_queries_follow_one_another(tiny_root: Path, tmp_path: Path) -> None:
    spec = adversarial_spec(adversarial={"queries_per_round": 12})
    run(tiny_root, tmp_path, spec)
    lots = [{row["query_id"] for row in list_rows(tmp_path) if row["round"] == number} for number in range(COUNT)]
    assert [len(lot) for lot in lots] == [12] * COUNT
    assert not lots[0] & lots[1]
    assert len(lots[0] | lots[1]) == 24
    assert [sum(query.startswith("train") for query in lot) for lot in lots] == [4, 4]


def test_two_jobs_have_rankers_of_their_own(tiny_root: Path, tmp_path: Path) -> None:
    """No score of one job's ranker is ever taken for a score of the other's, whose weights have the same number."""
    for job_id, seed in (("one", 1), ("other", 2)):
        spec = adversarial_spec(rounds={"count": 1}).model_copy(update={"seed": seed})
        journal = RecordingJournal()
        run(tiny_root, tmp_path, spec, job_id=job_id, journal=journal)
        assert sum(each["pairs_reused"] for each in journal.named("scoring.finished")) == 0
    assert len(list(tmp_path.glob("ranked_lists/*/*/_delta_log"))) == 2
