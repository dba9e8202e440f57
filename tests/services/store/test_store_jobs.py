"""What the API relies on: committed jobs, idempotent creation, stable pages, honest cancels."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.errors import JobNotFound, StateConflict
from services.store import DriverSession, Store


def test_a_created_job_is_there_for_another_process(store, new_job, database_url):
    """201 is answered after the commit, so a second connection must see the row and its first event."""
    job = new_job(metadata={"team": "search"}, request_fingerprint="f")
    other = Store(database_url)
    assert other.get_job(job.id) == job
    assert (job.status, job.attempt, job.fencing_token) == ("queued", 0, 0)
    assert [event.type for event in other.list_events(job.id)] == ["job.status"]
    other.close()


def test_a_spec_comes_back_as_it_was_sent(store):
    """Key order and floats are what a user compares his job file with."""
    spec = {"name": "x", "z": 1e-5, "a": {"ü": [1, 2.5, None, True]}}
    back = store.get_job(store.create_job(spec).id).spec
    assert list(back) == ["name", "z", "a"]
    assert back == spec


def test_nan_is_refused_and_not_stored(store):
    """NaN is not JSON: stored, it would break every later answer about the job."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.create_job({"name": "x", "lr": float("nan")})
    assert store.list_jobs() == []


def test_unknown_job(store):
    for call in (store.get_job, store.request_cancel):
        with pytest.raises(JobNotFound, match="ddjob-none"):
            call("ddjob-none")


def test_one_key_makes_one_job_even_in_a_race(store):
    """A client that times out sends again, possibly while the first request is still being handled."""
    with ThreadPoolExecutor(8) as pool:
        jobs = list(
            pool.map(
                lambda n: store.create_job({"name": f"n{n}"}, idempotency_key="k", request_fingerprint=str(n)),
                range(16),
            )
        )
    assert len({job.id for job in jobs}) == 1
    assert len(store.list_jobs()) == 1
    assert len({job.request_fingerprint for job in jobs}) == 1


def test_pages_do_not_shift_when_jobs_arrive(store, clock):
    """Cursor paging: new jobs in front must neither repeat nor hide older ones."""
    made = []
    for number in range(5):
        made.append(store.create_job({"name": f"n{number}"}).id)
        clock.advance(1)
    first = store.list_jobs(limit=2)
    store.create_job({"name": "late"})
    rest = store.list_jobs(after=first[-1].id, limit=10)
    assert [job.id for job in first + rest] == made[::-1]
    assert [job.id for job in store.list_jobs(status="running")] == []


def test_events_continue_after_an_id(store, new_job):
    job, other = new_job(), new_job()
    store.add_event(job.id, "note", "one", data={"n": 1})
    store.add_event(other.id, "note", "not mine")
    store.add_event(job.id, "note", "two\x00\ud800", level="warn")
    first, one, two = store.list_events(job.id)
    assert store.list_events(job.id, after=first.id, limit=1) == [one]
    assert store.list_events(job.id, after=one.id) == [two]
    assert two.message == "two\\x00\\ud800"  # what PostgreSQL cannot hold is spelled out, not refused
    assert (one.data, two.data, two.level) == ({"n": 1}, None, "warn")


def test_a_queued_job_is_cancelled_at_once(store, new_job, reconciler):
    job = store.request_cancel(new_job().id)
    assert (job.status, job.reason) == ("cancelled", "cancelled_by_user")
    assert job.finished_at is not None
    assert reconciler.claim_for_start(job.id, 10) is None
    with pytest.raises(StateConflict, match="already ended: cancelled"):
        store.request_cancel(job.id)


def test_a_running_job_is_cancelling_until_its_driver_stops(store, new_job, reconciler):
    job = new_job()
    driver = DriverSession(store, job.id, reconciler.claim_for_start(job.id, 10))
    assert not driver.cancel_requested()
    asked = store.request_cancel(job.id)
    assert asked.status == "cancelling"
    assert store.request_cancel(job.id) == asked  # a repeat changes nothing, not even the version
    assert driver.cancel_requested()
    assert driver.mark_cancelled() == "cancelled"
    assert store.get_job(job.id).phase is None
