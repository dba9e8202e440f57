"""A job's `training.negatives` reaches the student's batches, and only those."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_for_tests import run
from tiny import tiny_spec

from pipelines.ranked.tail import StreamPosition
from pipelines.spec import NegativeSampling
from pipelines.training import label_only, student_stream
from pipelines.training.batches import ListBatch, batches


def test_a_jobs_setting_reaches_the_students_batches(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the control's, whose candidates have no teacher scores."""
    seen: dict[str, list[NegativeSampling | None]] = {"rounds": [], "label_only": []}

    def noting(name: str) -> Any:
        def note(*arguments: Any, **settings: Any) -> Iterator[tuple[ListBatch, StreamPosition]]:
            seen[name].append(settings.get("negatives"))
            return batches(*arguments, **settings)

        return note

    monkeypatch.setattr(student_stream, "batches", noting("rounds"))
    monkeypatch.setattr(label_only, "batches", noting("label_only"))
    spec = tiny_spec(
        training={"queries_per_step": 16, "candidates_per_query": 4, "negatives": {"strategy": "simans", "a": 0.2}},
        evaluation={"label_only_control": True},
    )
    run(tiny_root, tmp_path, spec)
    assert seen == {"rounds": [NegativeSampling(strategy="simans", a=0.2)], "label_only": [None]}
