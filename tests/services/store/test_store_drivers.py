"""Fencing: of two drivers that believe they own a job, exactly one can write, and the other is told to stop."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import OperationalError

from services.errors import ServiceError, StaleDriver, StateConflict
from services.store import DriverSession, Store, Teacher

EVERY_WRITE = {
    "start": lambda driver: driver.start(),
    "heartbeat": lambda driver: driver.heartbeat(),
    "cancel_requested": lambda driver: driver.cancel_requested(),
    "set_phase": lambda driver: driver.set_phase("training"),
    "set_progress": lambda driver: driver.set_progress({"step": 99}),
    "event": lambda driver: driver.event("note", "hello"),
    "use_teacher": lambda driver: driver.use_teacher(Teacher(name="t", model_dir="d", contract={})),
    "report_demand": lambda driver: driver.report_demand(backlog_tokens=1, tokens_per_second=None, deadline_at=None),
    "publish_weights": lambda driver: driver.publish_weights(model_dir="d", contract={}, weights_version=1),
    "succeed": lambda driver: driver.succeed({"ndcg": 1.0}),
    "fail": lambda driver: driver.fail("invalid_dataset", "no"),
    "mark_cancelled": lambda driver: driver.mark_cancelled(),
}


@pytest.fixture
def started(store, new_job, reconciler):
    """A job with a running driver."""
    job = new_job()
    driver = DriverSession(store, job.id, reconciler.claim_for_start(job.id, 10))
    driver.start()
    return job.id, driver


@pytest.mark.parametrize("write", EVERY_WRITE)
@pytest.mark.parametrize("situation", ["requeued", "replaced", "failed", "cancelled"])
def test_a_stale_driver_changes_nothing(store, started, reconciler, write, situation):
    """A driver that was paused for an hour wakes up: each of its writes must be refused, whatever came meanwhile."""
    job_id, driver = started
    match situation:
        case "requeued":
            assert reconciler.requeue(job_id, 1, "silent")
        case "replaced":
            assert reconciler.requeue(job_id, 1, "silent")
            assert reconciler.claim_for_start(job_id, 10) == 2
        case "failed":
            assert reconciler.fail_job(job_id, 1, "driver_lost", "silent")
        case "cancelled":
            store.request_cancel(job_id)
            assert reconciler.cancel_job(job_id, 1)
    before, events = store.get_job(job_id), store.list_events(job_id)
    with pytest.raises(StaleDriver, match=r"token 1 and must stop"):
        EVERY_WRITE[write](driver)
    assert store.get_job(job_id) == before
    assert store.list_events(job_id) == events


def test_two_drivers_interleaved(store, started, reconciler):
    """The old one finishes its work while the new one has begun: only the new one's words count."""
    job_id, old = started
    old.set_progress({"step": 1, "by": "old"})
    reconciler.requeue(job_id, 1, "silent")
    new = DriverSession(store, job_id, reconciler.claim_for_start(job_id, 10))
    new.start()
    with pytest.raises(StaleDriver):
        old.set_progress({"step": 50, "by": "old"})
    new.set_progress({"by": "new"})
    with pytest.raises(StaleDriver):
        old.succeed({"by": "old"})
    assert new.succeed({"by": "new"}) == "succeeded"
    job = store.get_job(job_id)
    assert job.result == {"by": "new"}
    assert job.progress == {"step": 1, "by": "new"}  # what was done before the loss stays visible
    assert (job.attempt, job.fencing_token) == (2, 2)


def test_a_driver_from_the_future_is_refused_too(store, started):
    """A token that no claim ever handed out is not newer, it is wrong."""
    with pytest.raises(StaleDriver):
        DriverSession(store, started[0], 2).heartbeat()
    with pytest.raises(StaleDriver, match="is gone"):
        DriverSession(store, "ddjob-none", 1).heartbeat()


def test_ends_may_be_repeated_by_the_driver_that_said_them(store, started):
    """The commit went through, the answer was lost, the driver says it again: that is not a conflict."""
    job_id, driver = started
    assert driver.succeed({"a": 1}) == "succeeded"
    ended = store.get_job(job_id)
    assert driver.succeed({"a": 1}) == "succeeded"
    assert store.get_job(job_id) == ended
    with pytest.raises(StaleDriver):
        driver.fail("x", "y")


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_an_accepted_cancel_decides_the_end(store, started, end):
    """The user was told `cancelling`; a driver that finishes in that second must not turn it into success."""
    job_id, driver = started
    store.request_cancel(job_id)
    assert EVERY_WRITE[end](driver) == "cancelled"
    job = store.get_job(job_id)
    assert (job.status, job.result, job.error) == ("cancelled", None, None)
    assert any(event.type == "driver.failed" for event in store.list_events(job_id)) == (end == "fail")


def test_nobody_asked_for_a_cancel(started):
    with pytest.raises(StateConflict, match="cannot become cancelled"):
        started[1].mark_cancelled()


def test_a_failure_says_why(store, started):
    job_id, driver = started
    assert driver.fail("invalid_dataset", "dataset.path: there is no folder 'x'", param="dataset.path") == "failed"
    job = store.get_job(job_id)
    assert job.error == {
        "code": "invalid_dataset",
        "message": "dataset.path: there is no folder 'x'",
        "param": "dataset.path",
    }
    assert (job.reason, job.message) == ("invalid_dataset", "dataset.path: there is no folder 'x'")
    assert store.list_events(job_id)[-1].level == "error"


def test_phases_close_one_another(store, started, clock):
    job_id, driver = started
    clock.advance(5)
    driver.set_phase("scoring")
    driver.set_phase("scoring")
    clock.advance(7)
    driver.succeed({})
    spans = [
        (entry["phase"], entry["finished_at"] - entry["started_at"]) for entry in store.get_job(job_id).phase_history
    ]
    assert spans == [("provisioning", 5), ("scoring", 7)]


def test_a_teacher_is_named_before_anything_is_wanted_of_it(started):
    with pytest.raises(ServiceError, match="use_teacher comes first"):
        started[1].report_demand(backlog_tokens=1, tokens_per_second=None, deadline_at=None)
    with pytest.raises(ServiceError, match="use_teacher comes first"):
        started[1].publish_weights(model_dir="d", contract={}, weights_version=1)


def test_nan_progress_is_refused(store, started):
    """A NaN loss must stop the driver with an error, not become invalid JSON for every reader."""
    job_id, driver = started
    with pytest.raises(ValueError, match="not JSON compliant"):
        driver.set_progress({"loss": float("nan")})
    assert store.get_job(job_id).progress == {}


def test_threads_of_one_driver_lose_no_write(store, started):
    """The heartbeat thread and the training loop write the same row at the same time."""
    job_id, driver = started

    def write(number):
        driver.heartbeat()
        driver.set_progress({f"k{number}": number})
        driver.event("note", str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert store.get_job(job_id).progress == {f"k{n}": n for n in range(24)}
    assert sum(event.type == "note" for event in store.list_events(job_id)) == 24


def test_a_short_outage_of_the_database_is_waited_out(store, started, monkeypatch):
    """A PostgreSQL restart of a few seconds must not cost an attempt of an hour-long job."""
    job_id, driver = started
    real, failures = store.writing, [OperationalError("x", {}, Exception("server closed the connection"))] * 2

    def failing():
        if failures:
            raise failures.pop()
        return real()

    monkeypatch.setattr(store, "writing", failing)
    driver.set_progress({"step": 3})
    assert not failures
    assert store.get_job(job_id).progress == {"step": 3}


_WRITER = """
import sys
from services.store import DriverSession, Store, Teacher
url, job_id, who = sys.argv[1:]
store = Store(url)
for n in range(40):
    DriverSession(store, job_id, 1).set_progress({f"{who}{n}": n})
    DriverSession(store, job_id, 1).heartbeat()
"""

_KILLED = """
import os, sys
from services.store import Store
from services.store.transitions import lock_job, set_status
url, job_id = sys.argv[1:]
store = Store(url)
with store.writing() as session:
    row = lock_job(session, job_id)
    set_status(session, row, "succeeded", now=0.0)
    session.flush()
    os._exit(9)
"""


def test_processes_share_the_database(database_url, store, started):
    """Gateway and drivers are processes of their own on one SQLite file: nobody may meet 'database is locked'."""
    job_id, _ = started
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, database_url, job_id, who], stderr=subprocess.PIPE)
        for who in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        store.get_job(job_id)
    for writer in writers:
        assert writer.communicate()[1] == b""
        assert writer.returncode == 0
    assert len(store.get_job(job_id).progress) == 80


def test_a_process_killed_inside_a_transaction_changes_nothing(database_url, store, started):
    """kill -9 between UPDATE and COMMIT: no half transition, no lock left behind."""
    job_id, driver = started
    before = store.get_job(job_id), store.list_events(job_id)
    killed = subprocess.run([sys.executable, "-c", _KILLED, database_url, job_id], check=False)
    assert killed.returncode == 9
    assert (Store(database_url).get_job(job_id), store.list_events(job_id)) == before
    assert driver.succeed({}) == "succeeded"
