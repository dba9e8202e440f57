"""Both players trained by workers of their own, two each: what one process makes of it, and a worker that dies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs_for_tests import run, student_bytes
from mortal_tasks import mortal, still_to_die
from sentence_transformers import CrossEncoder
from test_rounds_adversarial import COUNT, RANKER_STEPS, STUDENT_STEPS, adversarial_spec, ranker_bytes
from test_rounds_training import curve
from tiny import RecordingJournal

from pipelines.spec import DistillationSpec

TWO = {"count": 2, "cpus_per_worker": 0.5}


def with_workers(**more: Any) -> DistillationSpec:
    """Without dropout, so that one process computes the same."""
    ranker = {"steps_per_round": RANKER_STEPS, "queries_per_step": 3, "learning_rate": 3e-3, "dropout": 0.0}
    ranker |= {"checkpoint_every_steps": 2, "dtype": "fp32"} | more
    student = {"workers": TWO} if more else {}
    return adversarial_spec(adversarial={"ranker": ranker}, training={"dropout": 0.0} | student)


class Recorded:
    def __init__(self, data_root: Path, root: Path, spec: DistillationSpec) -> None:
        self.root, self.journal, self.losses = root, RecordingJournal(), {}
        self.data_root, self.spec = data_root, spec

    def play(self) -> "Recorded":
        def note(numbers: dict[str, Any]) -> None:
            if "ranker_step" in numbers:
                self.losses[numbers["ranker_step"]] = numbers["ranker_loss"]

        self.journal.on_progress = note
        run(self.data_root, self.root, self.spec, journal=self.journal)
        return self


@pytest.fixture(scope="module")
def together(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tiny_root, tmp_path_factory.mktemp("together"), with_workers(workers=TWO)).play()


def test_two_workers_each_train_what_one_process_trains(together: Recorded, tiny_root: Path, tmp_path: Path) -> None:
    alone = Recorded(tiny_root, tmp_path, with_workers()).play()
    assert list(together.losses) == list(alone.losses) == list(range(1, COUNT * RANKER_STEPS + 1))
    assert together.losses == pytest.approx(alone.losses, rel=2e-4)
    losses = [[point["loss"] for point in curve(each.root)] for each in (alone, together)]
    assert len(losses[0]) == COUNT * STUDENT_STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
    pairs = [("heart risk", "a bone test"), ("heart risk", "what helps the heart")]
    rankers = [
        CrossEncoder(str(each.root / "jobs/job/artifacts/ranker"), device="cpu", activation_fn=torch.nn.Identity())
        for each in (alone, together)
    ]
    np.testing.assert_allclose(rankers[0].predict(pairs), rankers[1].predict(pairs), atol=1e-2)


def test_workers_that_die_are_started_again_and_nothing_is_lost(
    together: Recorded, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the ranker's in the second round, one of the student's in the first."""
    mortal(monkeypatch, tmp_path, ranker_step=RANKER_STEPS + 3, step=5)
    again = Recorded(tiny_root, tmp_path, with_workers(workers=TWO)).play()
    assert not still_to_die(tmp_path)
    assert len(again.journal.named("training.workers.failed")) == 2
    assert ranker_bytes(tmp_path) == ranker_bytes(together.root)
    assert student_bytes(tmp_path) == student_bytes(together.root)
