"""A job that averages its student's weights exports the average, and measures it too.

Why: training would run as before if the last weights were exported instead, and nobody would see it.
"""

from pathlib import Path

import torch
from jobs_for_tests import run
from safetensors.torch import load_file
from tiny import tiny_spec


def test_the_average_is_exported_and_not_the_last_weights(tiny_root: Path, tmp_path: Path) -> None:
    run(tiny_root, tmp_path, tiny_spec(training={"ema_decay": 0.8}))
    job = tmp_path / "jobs" / "job"
    exported = load_file(job / "artifacts" / "student" / "model.safetensors")
    (snapshot,) = [load_file(path) for path in job.rglob("snapshots/round-0.safetensors")]
    differ = 0
    for name, value in exported.items():
        assert torch.equal(value, snapshot[f"averaged.student.backbone.{name}"])
        differ += not torch.equal(value, snapshot[f"student.backbone.{name}"])
    assert differ > 10
