"""Every objective in a real job: named in the spec, given its tensors, in the learning curve, in the trained student.

Why: the registry's tests call the functions; only a job shows that what a step offers is what they ask for.
"""

import json
import math
from pathlib import Path

import pytest
from jobs_for_tests import run, student_bytes
from safetensors.torch import load_file
from tiny import RecordingJournal, tiny_spec

from pipelines.errors import DataError
from pipelines.objectives.registry import OBJECTIVES

WHOLE = {"model": {"id": "encoder"}, "num_layers": None, "max_length": 32}
"""nspt compares with the checkpoint as it is."""
SMALL = 1e-3
"""Some terms are in the hundreds on an untrained student; together they should neither cancel nor explode."""


def curve(root: Path) -> list[dict[str, float]]:
    text = (root / "jobs" / "job" / "work" / "learning_curve.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_all_objectives_at_once(tiny_root: Path, tmp_path: Path) -> None:
    terms = [{"name": name, "weight": SMALL} for name in OBJECTIVES if name != "margin_mse"]
    terms += [{"name": "margin_mse", "weight": SMALL, "scale": 8.0}]
    learning = {"info_nce": ["temperature"], "siglip": ["scale", "bias"], "amcl": ["temperature", "temperature_slope"]}
    terms = [term | {"learn": learning.get(str(term["name"]), [])} for term in terms]
    training = {"objective": terms, "epochs": 2, "positives_per_query": 2}
    run(tiny_root, tmp_path, tiny_spec(student=WHOLE, training=training))
    points = curve(tmp_path)
    assert len(points) > 4
    for name in OBJECTIVES:
        values = [point[f"loss.{name}"] for point in points]
        assert all(map(math.isfinite, values)), name
        assert any(value != 0 for value in values), f"{name} never had anything to say"
    for name, parameters in learning.items():
        for parameter in parameters:
            assert points[-1][f"{name}.{parameter}"] != points[0][f"{name}.{parameter}"], "it is trained"


@pytest.mark.parametrize("name", ["cprd", "list_net", "ranknet", "mw", "dcl", "mochi", "nspt"])
def test_one_objective_alone_trains_the_student(tiny_root: Path, tmp_path: Path, name: str) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    term = {"name": name}
    data = {"path": "data", "test_split": None}  # no evaluation: another test has it
    slow = {"objective": [term], "learning_rate": 1e-12}
    run(tiny_root, before, tiny_spec(dataset=data, student=WHOLE, training=slow))
    run(tiny_root, after, tiny_spec(dataset=data, student=WHOLE, training={"objective": [term]}))
    assert student_bytes(before) != student_bytes(after)
    assert curve(after)[-1][f"loss.{name}"] != curve(before)[-1][f"loss.{name}"]


def test_another_objective_makes_no_teacher_call(tiny_root: Path, tmp_path: Path) -> None:
    """Scores are kept per contract: retuning a loss is free."""
    run(tiny_root, tmp_path, tiny_spec(), job_id="first")
    journal = RecordingJournal()
    other = tiny_spec(training={"objective": [{"name": "lambda_loss", "temperature": 0.1}]})
    run(tiny_root, tmp_path, other, job_id="second", journal=journal)
    assert {event["pairs_scored"] for event in journal.named("scoring.finished")} == {0}


def test_objectives_that_need_positives_say_so_when_no_list_has_one(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(
        dataset={"path": "data", "train_split": None, "unlabelled": {"min_confidence": 1.0}},
        training={"objective": [{"name": "dcl"}, {"name": "z_loss"}]},
    )
    with pytest.raises(DataError, match="no term of the objective then learns anything"):
        run(tiny_root, tmp_path, spec)


def test_what_is_learned_goes_on_from_round_to_round(tiny_root: Path, tmp_path: Path) -> None:
    terms = [{"name": "info_nce", "temperature": 0.2, "learn": ["temperature"]}]
    training = {"objective": terms, "objective_learning_rate": 0.1}
    run(tiny_root, tmp_path, tiny_spec(rounds=2, training=training))
    snapshot = load_file(tmp_path / "jobs" / "job" / "work" / "snapshots" / "round-0.safetensors")
    (learned,) = [value for name, value in snapshot.items() if name.startswith("learned.")]
    second = next(point for point in curve(tmp_path) if point["round"] == 1)
    assert second["info_nce.temperature"] == pytest.approx(learned.exp().item(), rel=1e-6)
    assert abs(second["info_nce.temperature"] - 0.2) > 1e-3


def test_the_previous_student_is_the_one_before_the_job_in_every_round_and_after_a_crash(
    tiny_root: Path, tmp_path: Path
) -> None:
    """Killed in the second round: what the new process starts from is trained, what it compares with must not be."""
    spec = tiny_spec(rounds=2, student=WHOLE, training={"objective": [{"name": "nspt"}, {"name": "list_kl"}]})
    run(tiny_root, tmp_path / "whole", spec)

    class Killed(BaseException):
        pass

    journal = RecordingJournal()

    def die(numbers: dict[str, float | str]) -> None:
        if numbers.get("round") == 1 and numbers.get("step") == 3:
            raise Killed

    journal.on_progress = die
    with pytest.raises(Killed):
        run(tiny_root, tmp_path / "killed", spec, journal=journal)
    run(tiny_root, tmp_path / "killed", spec)
    assert student_bytes(tmp_path / "killed") == student_bytes(tmp_path / "whole")
