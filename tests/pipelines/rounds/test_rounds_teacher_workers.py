"""A teacher that two workers fine-tune together, one of whom dies: what one process makes of it, and a job goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs_for_tests import run
from mortal_tasks import mortal, still_to_die
from sentence_transformers import CrossEncoder
from tiny import RecordingJournal, tiny_spec

from pipelines.spec import DistillationSpec, SpecError

STEPS, DIES_AT = 56, 53


def fine_tuned(**more: Any) -> DistillationSpec:
    """Without dropout, so that one process computes the same."""
    train = {"max_steps": STEPS, "lists_per_step": 3, "negatives_per_list": 2, "dropout": 0.0, "dtype": "fp32"}
    return tiny_spec(teacher={"train": train | more})


def losses_of(data_root: Path, root: Path, spec: DistillationSpec, *, failures: int) -> dict[int, float]:
    """Step -> loss of the teacher, of a job with so many failures of workers."""
    losses: dict[int, float] = {}
    journal = RecordingJournal()

    def note(numbers: dict[str, Any]) -> None:
        if "teacher_step" in numbers:
            losses[numbers["teacher_step"]] = numbers["teacher_loss"]

    journal.on_progress = note
    run(data_root, root, spec, journal=journal)
    assert len(journal.named("training.workers.failed")) == failures
    assert len(journal.named("teacher.training.finished")) == 1
    return losses


def the_teacher(root: Path) -> Path:
    (work,) = (root / "teachers").iterdir()
    assert sorted(path.name for path in work.iterdir()) == [".lock", "model"]
    return work / "model"


def test_two_workers_fine_tune_what_one_process_does(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = {"count": 2, "cpus_per_worker": 0.5}
    alone = losses_of(tiny_root, tmp_path / "alone", fine_tuned(), failures=0)
    mortal(monkeypatch, tmp_path / "together", teacher_step=DIES_AT)
    together = losses_of(tiny_root, tmp_path / "together", fine_tuned(workers=workers), failures=1)
    assert not still_to_die(tmp_path / "together")
    assert list(alone) == list(together) == list(range(1, STEPS + 1))
    assert together == pytest.approx(alone, rel=1e-3)
    assert the_teacher(tmp_path / "alone").parent.name == the_teacher(tmp_path / "together").parent.name
    pairs = [("heart risk", "a bone test"), ("heart risk", "what helps the heart")]
    found = [
        CrossEncoder(str(the_teacher(tmp_path / name)), device="cpu", activation_fn=torch.nn.Identity()).predict(pairs)
        for name in ("alone", "together")
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-2)


def test_more_workers_than_it_may_have_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"teacher\.train\.workers\.min_count|teacher\.train\.workers.*min_count 3"):
        fine_tuned(workers={"count": 2, "min_count": 3})
