"""Events as pages and as a stream: complete, in order, resumable, and the stream ends with the job."""

import json

import httpx
import pytest

from services.store import DriverSession, ReconcilerSession, Store

JOBS = "/v1/distillation/jobs"


def read_stream(lines):
    """(event, id, data) of each server-sent event."""
    fields = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])
            fields = {}


@pytest.fixture
def store(settings, app):  # app migrates and uses the wall clock; so does this second connection
    opened = Store(settings.database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def driver(store, spec):
    job = store.create_job(spec)
    return DriverSession(store, job.id, ReconcilerSession(store, "r").claim_for_start(job.id, 10)), job.id


def test_pages_are_oldest_first_and_continue(client, driver):
    session, job_id = driver
    for number in range(3):
        session.event("note", f"n{number}", {"number": number})
    first = client.get(f"{JOBS}/{job_id}/events", params={"limit": 3}).json()
    assert [event["type"] for event in first["data"]] == ["job.status", "job.status", "note"]
    assert first["has_more"]
    rest = client.get(f"{JOBS}/{job_id}/events", params={"after": first["last_id"]}).json()
    assert [event["message"] for event in rest["data"]] == ["n1", "n2"]
    assert rest["data"][0]["data"] == {"number": 1}
    assert rest["data"][0]["object"] == "distillation.job.event"
    assert not rest["has_more"]


@pytest.mark.parametrize("cursor", ["x", "ddevent-", "ddevent--1", "9" * 19, "²"])
def test_a_cursor_that_is_none(client, driver, cursor):
    answer = client.get(f"{JOBS}/{driver[1]}/events", params={"after": cursor})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "after")


def test_events_of_no_job(client):
    for query in ("", "?stream=true"):
        assert client.get(f"{JOBS}/ddjob-none/events{query}").status_code == 404


@pytest.mark.parametrize("how", [{"params": {"stream": "true"}}, {"headers": {"accept": "text/event-stream"}}])
def test_the_stream_of_an_ended_job_is_everything_and_done(client, driver, how):
    """More events than one batch, so that a forgotten last batch would show."""
    session, job_id = driver
    for number in range(230):
        session.event("metrics" if number % 2 else "note", str(number))
    session.succeed({})
    answer = client.get(f"{JOBS}/{job_id}/events", **how)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    events = list(read_stream(answer.text.split("\n")))
    names = [name for name, _, _ in events]
    assert names[:2] == ["job.status", "job.status"]
    assert names[2:4] == ["job.event", "job.metrics"]
    assert [data["message"] for _, _, data in events[2:232]] == [str(n) for n in range(230)]
    assert names[-2:] == ["job.status", "done"]
    assert events[-1][2] == {"id": job_id, "status": "succeeded"}
    assert all(data["id"] == id_ for _, id_, data in events[:-1])


def test_a_stream_resumes_after_the_last_event_seen(client, driver):
    session, job_id = driver
    for number in range(4):
        session.event("note", str(number))
    session.succeed({})
    url = f"{JOBS}/{job_id}/events"
    ids = [event["id"] for event in client.get(url).json()["data"]]
    answer = client.get(url, headers={"accept": "text/event-stream", "last-event-id": ids[3]})
    events = list(read_stream(answer.text.split("\n")))
    assert [id_ for _, id_, _ in events] == [*ids[4:], None]


def test_a_live_stream_shows_what_happens_and_ends(live_url, driver):
    """Each event is written after the client has received the one before: nothing may be held back."""
    session, job_id = driver
    with httpx.stream("GET", f"{live_url}{JOBS}/{job_id}/events?stream=true", timeout=60) as answer:
        events = read_stream(answer.iter_lines())
        assert [next(events)[0] for _ in range(2)] == ["job.status", "job.status"]
        for number in range(3):
            session.event("metrics", str(number), {"loss": 0.5})
            name, _, data = next(events)
            assert (name, data["message"], data["data"]) == ("job.metrics", str(number), {"loss": 0.5})
        session.fail("invalid_dataset", "no such folder")
        assert [name for name, _, _ in events] == ["job.status", "done"]


def test_an_idle_stream_pings(live_url, driver, monkeypatch):
    """Proxies cut silent connections."""
    monkeypatch.setattr("services.gateway.events._PING_EVERY_S", 0.02)
    session, job_id = driver
    with httpx.stream("GET", f"{live_url}{JOBS}/{job_id}/events?stream=true", timeout=60) as answer:
        names = (name for name, _, _ in read_stream(answer.iter_lines()))
        assert next(name for name in names if name != "job.status") == "ping"
        session.succeed({})
        assert list(names)[-1] == "done"
