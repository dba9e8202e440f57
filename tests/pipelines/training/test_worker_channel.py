"""What workers say arrives once, in order and whole; what the job says is obeyed."""

from pathlib import Path

import pytest

from pipelines.errors import Cancelled, DataError, RankedListsError
from pipelines.training.worker_channel import JobSide, Message, WorkerSide


def test_everything_that_is_said_arrives_once_and_in_order(tmp_path: Path) -> None:
    job, worker = JobSide(tmp_path), WorkerSide(tmp_path, speaks=True)
    assert list(job.messages()) == []
    worker.phase("scoring_and_training")
    worker.event("training.started", "the first step is done", round=0)
    worker.progress(step=1)
    assert [message.kind for message in job.messages()] == ["phase", "event", "progress"]
    worker.log(1, {"loss": 0.5})
    worker.failed(DataError("no list"))
    assert list(job.messages()) == [
        Message("metrics", {"step": 1, "values": {"loss": 0.5}}),
        Message("failed", {"kind": "DataError", "message": "no list"}),
    ]
    assert list(job.messages()) == []


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    job = JobSide(tmp_path)
    path = tmp_path / "messages.jsonl"
    path.write_bytes(b'{"kind": "progress", "da')
    assert list(job.messages()) == []
    path.write_bytes(b'{"kind": "progress", "data": {"step": 2}}\n')
    assert list(job.messages()) == [Message("progress", {"step": 2})]


def test_only_the_first_worker_speaks_and_a_new_attempt_hears_nothing_old(tmp_path: Path) -> None:
    JobSide(tmp_path).stop()
    WorkerSide(tmp_path, speaks=True).progress(step=1)
    job = JobSide(tmp_path)
    WorkerSide(tmp_path, speaks=False).progress(step=2)
    assert list(job.messages()) == []
    WorkerSide(tmp_path, speaks=True).check_cancelled()


def test_workers_end_when_told_and_when_a_list_will_never_come(tmp_path: Path) -> None:
    job, worker = JobSide(tmp_path), WorkerSide(tmp_path, speaks=True)
    worker.wait_for_lists()
    job.every_list_is_there()
    worker.wait_for_lists()  # the chunk may have come in between: one more look
    with pytest.raises(RankedListsError, match="a chunk of the round's lists is missing"):
        worker.wait_for_lists()
    job.stop()
    with pytest.raises(Cancelled):
        WorkerSide(tmp_path, speaks=True).check_cancelled()
