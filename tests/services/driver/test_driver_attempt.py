"""`python -m services.driver` without a cluster: how each way in which a run can end becomes the job's end.

The science and Ray are played; the whole is in tests/system.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError
from tiny import spec_data

from pipelines.errors import Cancelled, DataError
from pipelines.job_context import JobContext
from services.driver import __main__ as driver
from services.errors import TeacherPoolError
from services.store import Job, ReconcilerSession, Store

Run = Callable[[JobContext], dict[str, Any]]


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    folder = tmp_path / "data-root"
    (folder / "data").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_root: Path, database_url: str) -> Iterator[None]:
    """A driver gets its settings from the environment, and its threads from them."""
    monkeypatch.setenv("DUALDISTILL_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("DUALDISTILL_DATABASE_URL", database_url)
    monkeypatch.setenv("DUALDISTILL_DATA_ROOTS", str(data_root))
    monkeypatch.setenv("DUALDISTILL_DRIVER_CPUS", "1.5")
    monkeypatch.setattr(driver.ray, "init", lambda **_: None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def drive(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Job]]:
    """Claim a new job, run its driver with `run` for the science: (exit status, the job afterwards)."""

    def start(run: Run, *, token: int = 1, **sections: Any) -> tuple[int, Job]:
        job_id = store.create_job(spec_data(**sections)).id
        ReconcilerSession(store, "reconciler").claim_for_start(job_id, 30)
        monkeypatch.setattr(driver, "run_job", run)
        return driver.main(job_id, token), store.get_job(job_id)

    return start


def raising(error: BaseException) -> Run:
    def run(context: JobContext) -> dict[str, Any]:
        raise error

    return run


def test_a_run_that_ends_well_keeps_its_result_and_its_last_numbers(drive: Any) -> None:
    def run(context: JobContext) -> dict[str, Any]:
        context.journal.progress(step=1)
        context.journal.progress(step=2)
        return {"evaluation": None, "facts": {}}

    status, job = drive(run)
    assert (status, job.status) == (0, "succeeded")
    assert job.result == {"evaluation": None, "facts": {}}
    assert job.progress == {"step": 2}


def test_the_science_gets_the_job_and_the_operator_s_folders(drive: Any, tmp_path: Path, data_root: Path) -> None:
    seen: list[JobContext] = []

    def run(context: JobContext) -> dict[str, Any]:
        seen.append(context)
        return {}

    _, job = drive(run)
    (context,) = seen
    assert (context.job_id, context.spec.name) == (job.id, "tiny")
    assert context.dataset_folder == data_root / "data"
    assert context.root == tmp_path / "root"
    assert context.model_roots == (data_root,)
    assert context.side_task_cpus == 1.5


def test_a_driver_computes_with_the_cpus_it_booked(drive: Any) -> None:
    torch.set_num_threads(4)
    seen: list[int] = []

    def run(context: JobContext) -> dict[str, Any]:
        seen.append(torch.get_num_threads())
        return {}

    drive(run)
    assert seen == [1]


def test_what_the_user_must_mend_ends_the_job(drive: Any) -> None:
    message = "corpus.jsonl, line 2: d1 was given before"
    status, job = drive(raising(DataError(message)))
    assert (status, job.status, job.reason) == (0, "failed", "invalid_dataset")
    assert job.error == {
        "code": "invalid_dataset",
        "message": message,
        "param": None,
    }


def test_an_error_from_another_process_is_a_sentence_too(drive: Any) -> None:
    """Ray gives such an error the type of its cause, but its text is the other process's traceback."""
    cause = DataError("query 'what ...' has 70 tokens")
    wrapped = RayTaskError("score", "Traceback (most recent call last): ...", cause).as_instanceof_cause()
    status, job = drive(raising(wrapped))
    assert (status, job.status, job.reason) == (0, "failed", "invalid_dataset")
    assert job.error["message"] == "query 'what ...' has 70 tokens"


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), TeacherPoolError("no replica"), MemoryError()])
def test_what_another_attempt_may_mend_leaves_the_job_to_the_reconciler(drive: Any, store: Store, error: Any) -> None:
    status, job = drive(raising(error))
    assert (status, job.status, job.error) == (1, "running", None)
    event = store.list_events(job.id)[-1]
    assert (event.type, event.level) == ("driver.error", "error")
    assert type(error).__name__ in event.message
    assert "Traceback" in event.data["traceback"], "an operator must be able to find out"


def test_a_cancelled_run_ends_cancelled(drive: Any, store: Store) -> None:
    def run(context: JobContext) -> dict[str, Any]:
        store.request_cancel(context.job_id)
        raise Cancelled("asked to stop")

    status, job = drive(run)
    assert (status, job.status) == (0, "cancelled")


def test_a_driver_with_an_old_token_does_nothing(drive: Any) -> None:
    ran: list[JobContext] = []
    status, job = drive(lambda context: ran.append(context) or {}, token=0)
    assert (status, ran) == (3, [])
    assert (job.status, job.fencing_token, job.heartbeat_at) == ("running", 1, None)


def test_a_driver_that_is_replaced_while_it_runs_writes_no_end(drive: Any, store: Store) -> None:
    def run(context: JobContext) -> dict[str, Any]:
        reconciler = ReconcilerSession(store, "reconciler")
        reconciler.requeue(context.job_id, 1, "no heartbeat")
        reconciler.claim_for_start(context.job_id, 30)
        return {"evaluation": None}

    status, job = drive(run)
    assert (status, job.status, job.result, job.fencing_token) == (3, "running", None, 2)


@pytest.mark.parametrize(
    ("section", "fields", "named"),
    [
        ("dataset", {"path": "../elsewhere"}, "dataset.path"),
        ("teacher", {"model": {"id": "/etc"}}, "teacher.model.id"),
    ],
)
def test_paths_are_checked_again_before_anything_is_opened(
    drive: Any, section: str, fields: dict[str, Any], named: str
) -> None:
    """The gateway checked them; a symlink may have appeared, or an operator changed the roots."""
    ran: list[JobContext] = []
    status, job = drive(lambda context: ran.append(context) or {}, **{section: fields})
    assert (status, job.status, job.reason, ran) == (0, "failed", "path_outside_data_roots", [])
    assert job.error["message"].startswith(f"{named}: ")


def test_a_spec_of_another_version_fails_in_words(drive: Any) -> None:
    """A rolling upgrade may leave queued jobs whose spec this version no longer knows."""
    status, job = drive(lambda _: {}, training={"no_such_field": 1})
    assert (status, job.status, job.reason) == (0, "failed", "invalid_spec")
    assert "training.no_such_field" in job.error["message"]
