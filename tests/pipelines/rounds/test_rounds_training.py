"""Whole jobs with what training can be asked for: workers, dev measure, pacing, a teacher's budget, a warm start.

Why: each part is proven by itself elsewhere; here is that a job's spec reaches it, through rounds, crashes and files.
"""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs_for_tests import run
from mortal_tasks import mortal
from safetensors.torch import load_file
from tiny import RecordingJournal, spec_data, tiny_spec

from pipelines.errors import Cancelled, DataError
from pipelines.spec import DistillationSpec, SpecError, parse_spec
from pipelines.training import local_workers
from pipelines.training.group_task import GroupTask


def curve(root: Path, job: str = "job") -> list[dict[str, Any]]:
    lines = (root / "jobs" / job / "work" / "learning_curve.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "jobs" / "job" / "artifacts" / "student" / "model.safetensors")


def with_workers(count: int, *, rounds: int = 1) -> DistillationSpec:
    workers = {"count": count, "cpus_per_worker": 0.5}
    return tiny_spec(rounds=rounds, training={"workers": workers, "gradient_cache": True})


@pytest.fixture(scope="module")
def together(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecordingJournal]:
    """Two rounds by two workers, undisturbed."""
    root, journal = tmp_path_factory.mktemp("together"), RecordingJournal()
    run(tiny_root, root, with_workers(2, rounds=2), journal=journal)
    return root, journal


def test_two_workers_train_what_one_process_trains(
    together: tuple[Path, RecordingJournal], tiny_root: Path, tmp_path: Path
) -> None:
    """Real processes, real gloo; the second round's workers go on from the first one's snapshot."""
    from sentence_transformers import SentenceTransformer

    root, journal = together
    run(tiny_root, tmp_path, tiny_spec(rounds=2))
    ours, theirs = curve(tmp_path), curve(root)
    assert [point["step"] for point in ours] == [point["step"] for point in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-4), one
    # Not weights: AdamW makes whole steps of the rounding errors in gradients that are zero (of the keys' biases).
    vectors = [
        SentenceTransformer(str(each / "jobs/job/artifacts/student"), device="cpu").encode(["heart risk", "bone test"])
        for each in (tmp_path, root)
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-2)
    assert [event["round"] for event in journal.named("training.finished")] == [0, 1]
    assert journal.numbers["step"] == ours[-1]["step"]
    assert any((root / "jobs/job/metrics/tensorboard").glob("events.out.tfevents.*")), "the first worker keeps curves"


def test_a_group_goes_on_with_fewer_workers(
    together: tuple[Path, RecordingJournal], tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cluster does that has lost a node: the losses are those of the whole group, to rounding."""
    journal, sizes = RecordingJournal(), []
    one_group = local_workers._one_group

    def shrinking(task: GroupTask, count: int) -> list[int]:
        sizes.append(count - len(sizes))
        return one_group(task, sizes[-1])

    monkeypatch.setattr(local_workers, "_one_group", shrinking)
    mortal(monkeypatch, tmp_path, step=5)
    run(tiny_root, tmp_path, with_workers(2), journal=journal)
    assert sizes == [2, 1]
    whole, fewer = [[point for point in curve(root) if point["round"] == 0] for root in (together[0], tmp_path)]
    by_step = {point["step"]: point["loss"] for point in fewer}  # a repeated step's last word
    assert by_step == pytest.approx({point["step"]: point["loss"] for point in whole}, rel=2e-4)


def test_an_error_that_would_come_again_is_raised_once(tiny_root: Path, tmp_path: Path) -> None:
    """Lists without anything to learn from: the workers are not started nine times for it."""
    spec = tiny_spec(
        training={"workers": {"count": 2, "cpus_per_worker": 0.5}, "filters": {"min_logit": 900, "min_candidates": 6}}
    )
    journal = RecordingJournal()
    with pytest.raises(DataError, match=r"none of 32 ranked lists, seen through training\.filters"):
        run(tiny_root, tmp_path, spec, journal=journal)
    assert not journal.named("training.workers.failed")


def test_cancelling_ends_the_workers(tiny_root: Path, tmp_path: Path) -> None:
    journal = RecordingJournal()

    def cancel(numbers: dict[str, float | str]) -> None:
        journal.cancelled = journal.cancelled or numbers.get("step", 0) == 2

    journal.on_progress = cancel
    with pytest.raises(Cancelled):
        run(tiny_root, tmp_path, with_workers(2), journal=journal)
    assert not multiprocessing.active_children()


def test_the_weights_that_did_best_on_dev_are_exported(tiny_root: Path, tmp_path: Path) -> None:
    """The test split of the tiny set serves as dev here: what is looked at is which weights come out."""
    spec = tiny_spec(
        dataset={"dev_split": "test", "test_split": None},
        training={"epochs": 6, "learning_rate": 3e-2},
        evaluation={"dev": {"every_steps": 2, "patience": 3, "pool_depth": 3}},
    )
    journal = RecordingJournal()
    run(tiny_root, tmp_path, spec, journal=journal)
    measured = {event["step"]: event["dev_ndcg@10"] for event in journal.named("training.measured")}
    finished = journal.named("training.finished")[0]
    best = max(measured.values())
    assert f"{best:.4f}" in finished["message"]
    first_best = next(step for step, value in measured.items() if value == best)
    assert finished["steps"] == max(measured), "it stopped when it had measured"
    assert finished["steps"] <= 48
    if finished["steps"] < 48:
        assert finished["steps"] // 2 - first_best // 2 == 3


def test_before_it_starts_it_says_what_is_coming(tiny_root: Path, tmp_path: Path) -> None:
    journal = RecordingJournal()
    run(tiny_root, tmp_path, tiny_spec(), journal=journal)
    order = [name for name, _ in journal.events]
    assert order.index("training.planned") < order.index("training.started")
    (plan,) = journal.named("training.planned")
    assert plan["steps"] == 8
    assert plan["queries_per_step"] == 4
    assert 4 < plan["texts_per_step"] <= 4 + 4 * 4
    assert plan["tokens_per_step"] > plan["texts_per_step"]
    assert plan["expected_seconds"] > 0


def test_pacing_begins_with_lists_the_teacher_is_sure_of(tiny_root: Path, tmp_path: Path) -> None:
    """And all take part in the end; a run that is killed and goes on passes over the same ones."""
    spec = tiny_spec(training={"epochs": 3, "pacing": {"start": 0.05, "full_at": 0.9}})
    run(tiny_root, tmp_path / "whole", spec)
    paced = curve(tmp_path / "whole")
    run(tiny_root, tmp_path / "all", tiny_spec(training={"epochs": 3}))
    assert 0 < len(paced) < len(curve(tmp_path / "all"))
    journal = RecordingJournal()

    def die(numbers: dict[str, float | str]) -> None:
        if numbers.get("step") == len(paced) - 2:
            raise KeyboardInterrupt

    journal.on_progress = die
    with pytest.raises(KeyboardInterrupt):
        run(tiny_root, tmp_path / "killed", spec, journal=journal)
    run(tiny_root, tmp_path / "killed", spec)
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(whole[name].equal(again[name]) for name in whole)


def test_the_teacher_is_asked_about_more_queries_each_round(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(rounds=2, dataset={"unlabelled": {"min_confidence": 0.2, "queries_per_round": 7}})
    journal = RecordingJournal()
    run(tiny_root, tmp_path, spec, journal=journal)
    first, second = journal.named("queries.chosen")
    assert (first["chosen"], first["guided"]) == (7, 0)
    assert second["chosen"] == 7
    work = tmp_path.joinpath("jobs", "job", "work")
    asked = [json.loads((work / f"queries-{n}.json").read_text()) for n in (0, 1)]
    assert not set(asked[0]) & set(asked[1])
    rows = [event["round"] for event in journal.named("training.finished")]
    assert rows == [0, 1]
    steps = [point["step"] for point in curve(tmp_path) if point["round"] == 1]
    assert steps[-1] == -(-(12 + 14) // 4), "the second round learns from both choices and the labelled queries"


def test_a_warm_start_is_made_once_and_changes_where_the_student_begins(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(student={"warm_start": {"steps": 5, "texts_per_step": 8}})
    journal = RecordingJournal()
    run(tiny_root, tmp_path / "warm", spec, journal=journal)
    assert len(journal.named("warm_start.started")) == 1
    again = RecordingJournal()
    run(tiny_root, tmp_path / "warm", spec, journal=again)
    assert not again.named("warm_start.started")
    run(tiny_root, tmp_path / "cold", tiny_spec())
    assert curve(tmp_path / "warm")[0]["loss"] != curve(tmp_path / "cold")[0]["loss"]


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"student": {"num_layers": None, "warm_start": {"steps": 5}}}, "warm_start"),
        ({"evaluation": {"dev": {"every_steps": 5}}}, "evaluation.dev"),
        ({"training": {"find_learning_rate": True, "workers": {"count": 2}}}, "training.find_learning_rate"),
        ({"training": {"workers": {"count": 2, "min_count": 3}}}, "min_count 3"),
        ({"dataset": {"unlabelled": {"queries_per_round": 5}}}, "dataset.unlabelled.queries_per_round"),
        ({"training": {"momentum": {}, "objective": [{"name": "nspt"}]}}, "momentum"),
    ],
)
def test_what_does_not_fit_together_is_refused(sections: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(spec_data(**sections))
    assert field in str(refused.value)
