"""Retuning what is trained on and how asks the teacher for nothing, and changes what the student becomes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_for_tests import Answers, ScriptedHost, run, student_bytes
from tiny import RecordingJournal, tiny_spec

from pipelines.errors import DataError
from pipelines.teacher.scorer import ScoreRequest

Score = Callable[[ScoreRequest], np.ndarray]
RETUNED: dict[str, dict[str, Any]] = {
    "loss": {"objective": [{"name": "cprd"}]},
    "temperature": {"objective": [{"name": "list_kl", "teacher_temperature": 3.0}, {"name": "info_nce"}]},
    "filter": {"filters": {"rank_window": {"by": "teacher", "first": 1, "last": 3}}},
    "relabel": {"filters": {"above_positive": "relabel", "same_text": "drop"}},
}


@pytest.fixture(scope="module")
def scored(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which a job with the same data and teacher has finished."""
    root = tmp_path_factory.mktemp("scored")
    run(tiny_root, root, job_id="first")
    return root


@pytest.mark.parametrize("what", RETUNED)
def test_another_loss_temperature_or_filter_asks_the_teacher_for_nothing(
    tiny_root: Path, scored: Path, what: str
) -> None:
    def script(requests: Iterable[ScoreRequest], score: Score) -> Answers:
        for request in requests:
            assert len(request.pairs) == 0, "a pair was sent to the teacher"
            yield request.key, score(request)

    journal = RecordingJournal()
    spec = tiny_spec(training=RETUNED[what])
    run(tiny_root, scored, spec, job_id=what, host=ScriptedHost(script), journal=journal)
    assert journal.numbers["pairs_scored"] == 0
    assert journal.numbers["pairs_reused"] > 0
    assert student_bytes(scored, what) != student_bytes(scored, "first"), "and yet it made a difference"


def test_a_filter_that_leaves_nothing_is_an_error_and_no_untrained_student(tiny_root: Path, scored: Path) -> None:
    spec = tiny_spec(training={"filters": {"min_candidates": 4000}})
    with pytest.raises(DataError, match=r"none of 32 ranked lists, seen through training\.filters .* filter-report"):
        run(tiny_root, scored, spec, job_id="nothing")
