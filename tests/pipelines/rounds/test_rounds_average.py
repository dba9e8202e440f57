"""A job that averages its student's weights exports the average, killed in between or not.

Why: training would run as before if the last weights were exported instead, and nobody would see it.
"""

import json
from pathlib import Path

import pytest
import torch
from jobs_for_tests import run
from safetensors.torch import load_file
from tiny import RecordingJournal, tiny_spec


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


def test_the_average_is_exported_and_not_the_last_weights(tiny_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(training={"ema_decay": 0.8})
    journal = RecordingJournal()

    def killed_at_step_three(numbers: dict[str, float | str]) -> None:
        if numbers.get("step") == 3:
            raise Killed

    journal.on_progress = killed_at_step_three
    with pytest.raises(Killed):
        run(tiny_root, tmp_path, spec, journal=journal)
    (state,) = tmp_path.rglob("checkpoints/round-0/step-00000002/state.json")
    facts = json.loads(state.read_text(encoding="utf-8"))["facts"]
    assert facts["table_version"] >= 1, "which lists had been read, for whoever wants to know later"

    run(tiny_root, tmp_path, spec)
    job = tmp_path / "jobs" / "job"
    exported = load_file(job / "artifacts" / "student" / "model.safetensors")
    (snapshot,) = [load_file(path) for path in job.rglob("snapshots/round-0.safetensors")]
    differ = 0
    for name, value in exported.items():
        assert torch.equal(value, snapshot[f"averaged.student.backbone.{name}"])
        differ += not torch.equal(value, snapshot[f"student.backbone.{name}"])
    assert differ > 10
