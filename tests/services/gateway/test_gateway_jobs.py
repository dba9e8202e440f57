"""The jobs API as a client sees it: what is accepted, what is refused and where the refusal points."""

import re

import pytest

from services.store import DriverSession, ReconcilerSession, Store

JOBS = "/v1/distillation/jobs"


def test_an_accepted_job_is_committed_before_the_answer(client, store, spec):
    """201 is a promise that survives a crash: the row must be in the database, seen by another connection."""
    answer = client.post(JOBS, json={"spec": spec, "metadata": {"team": "search"}})
    assert answer.status_code == 201
    job = answer.json()
    assert re.fullmatch(r"ddjob-[0-9a-z]{26}", job["id"])
    assert answer.headers["location"] == f"{JOBS}/{job['id']}"
    assert store.get_job(job["id"]).status == "queued"
    assert client.get(answer.headers["location"]).json() == job
    assert (job["object"], job["status"], job["attempt"]) == ("distillation.job", "queued", 0)
    assert job["metadata"] == {"team": "search"}
    assert job["spec"]["rounds"]["count"] == 1, (
        "defaults are written out, so that a later release cannot change this job"
    )
    assert isinstance(job["created_at"], int)
    assert job["started_at"] is job["finished_at"] is job["error"] is job["result"] is None


def test_the_request_touches_nothing_else(client, ray, spec):
    """A job is accepted while Ray is down, and a missing data set is the driver's to find."""
    ray.down = True
    assert client.post(JOBS, json={"spec": spec}).status_code == 201
    assert ray.requests == []


@pytest.mark.parametrize(
    ("change", "pointer", "param"),
    [
        ({"training": {"learning_rate": -1}}, "#/spec/training/learning_rate", "training.learning_rate"),
        ({"training": {"lerning_rate": 1}}, "#/spec/training/lerning_rate", "training.lerning_rate"),
        (
            {"training": {"objective": [{"name": "cprd", "temperature": -1}]}},
            "#/spec/training/objective/0/temperature",
            "training.objective.0.temperature",
        ),
        ({"training": {"objective": [{"name": "no"}]}}, "#/spec/training/objective/0", "training.objective.0"),
        (
            {"training": {"candidates_per_query": 99}},
            "#/spec/training/candidates_per_query",
            "training.candidates_per_query",
        ),
        ({"a/b~c": 1}, "#/spec/a~1b~0c", "a/b~c"),
        ({"teacher": None}, "#/spec/teacher", "teacher"),
        ({"dataset": {"path": "../x"}}, "#/spec/dataset/path", "dataset.path"),
    ],
)
def test_a_bad_spec_is_refused_with_the_field_named(client, spec, change, pointer, param):
    answer = client.post(JOBS, json={"spec": {**spec, **change}})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert [error["pointer"] for error in body["errors"]] == [pointer]
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"
    assert body["detail"] == body["error"]["message"]
    assert client.get(JOBS).json()["data"] == []


def test_every_problem_is_told_at_once(client, spec):
    answer = client.post(JOBS, json={"spec": {**spec, "rounds": 0, "seed": -1, "nope": 1}})
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers == {"#/spec/rounds", "#/spec/seed", "#/spec/nope"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(client, spec, number):
    """They parse in Python, and would make the stored job unreadable for everybody else."""
    text = '{"spec": {"name": "x", "dataset": {"path": "d"}, "teacher": {"model": {"id": "a"}},'
    text += f'"student": {{"model": {{"id": "a"}}}}, "training": {{"weight_decay": {number}}}}}}}'
    answer = client.post(JOBS, content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/spec/training/weight_decay"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/spec"),
        ({"spec": None, "x": 1}, "#/spec"),
        ({"spec": "text"}, "#/spec"),
        ({"metadata": {"k" * 65: "v"}}, None),
        ({"metadata": {"k": "v" * 513}}, "#/metadata/k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "#/metadata"),
        ({"metadata": {"k": 1}}, "#/metadata/k"),
        ({"entrypoint": "rm -rf /"}, "#/entrypoint"),
        ({"runtime_env": {}}, "#/runtime_env"),
    ],
)
def test_a_bad_body_is_refused(client, spec, body, pointer):
    body = body if "spec" in body or not body else {"spec": spec, **body}
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 422
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert pointer is None or pointer in pointers
    assert answer.json()["error"]["code"] in {"invalid_request", "invalid_spec"}


def test_a_body_that_is_not_json(client):
    answer = client.post(JOBS, content="{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_a_form_from_a_web_page_is_not_a_request(client):
    """A page that a user visits can post text/plain to 127.0.0.1 without asking; it must not start a job."""
    answer = client.post(JOBS, content='{"spec": {}}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422


@pytest.mark.parametrize("announced", [True, False])
def test_a_huge_body_is_cut_off(client, announced):
    """Whether its length is announced or it is streamed in chunks without one."""
    piece = b"v" * (1 << 16)
    body = piece * 32 if announced else (piece for _ in range(32))
    answer = client.post(JOBS, content=body, headers={"content-type": "application/json", "x-request-id": "r-1"})
    assert answer.status_code == 413
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_retry_under_one_key_makes_one_job(client, spec):
    headers = {"Idempotency-Key": "k1"}
    first = client.post(JOBS, json={"spec": spec}, headers=headers)
    again = client.post(JOBS, json={"spec": {**spec, "rounds": 1}}, headers=headers)  # the same, default spelt out
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    other = client.post(JOBS, json={"spec": {**spec, "rounds": 2}}, headers=headers)
    assert other.status_code == 422
    assert other.json()["error"] == {
        "message": f"This Idempotency-Key was used for another request, which made job {first.json()['id']}.",
        "type": "invalid_request_error",
        "param": "Idempotency-Key",
        "code": "idempotency_key_reused",
    }
    assert len(client.get(JOBS).json()["data"]) == 1


def test_pages_follow_one_another(client, spec):
    ids = [client.post(JOBS, json={"spec": spec}).json()["id"] for _ in range(5)]
    seen, after = [], None
    while True:
        page = client.get(JOBS, params={"limit": 2, **({"after": after} if after else {})}).json()
        assert page["object"] == "list"
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += [job["id"] for job in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert sorted(seen) == sorted(ids)
    assert len(seen) == 5
    empty = client.get(JOBS, params={"status": "running"}).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "status=nope"])
def test_bad_queries_name_the_parameter(client, query):
    answer = client.get(f"{JOBS}?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_cancel(client, spec, settings):
    """Queued: at once. Running: `cancelling`, repeatable. Ended: 409 that the openai client does not retry."""
    queued = client.post(JOBS, json={"spec": spec}).json()["id"]
    assert client.post(f"{JOBS}/{queued}/cancel").json()["status"] == "cancelled"
    conflict = client.post(f"{JOBS}/{queued}/cancel")
    assert conflict.status_code == 409
    assert conflict.headers["x-should-retry"] == "false"
    assert conflict.json()["error"]["code"] == "state_conflict"

    running = client.post(JOBS, json={"spec": spec}).json()["id"]
    store = Store(settings.database_url)
    token = ReconcilerSession(store, "r").claim_for_start(running, 10)
    first = client.post(f"{JOBS}/{running}/cancel")
    assert (first.status_code, first.json()["status"]) == (200, "cancelling")
    assert client.post(f"{JOBS}/{running}/cancel").json() == first.json()
    DriverSession(store, running, token).mark_cancelled()
    assert client.get(f"{JOBS}/{running}").json()["reason"] == "cancelled_by_user"
    store.close()


def test_a_failed_job_shows_its_error(client, spec, settings):
    job_id = client.post(JOBS, json={"spec": spec}).json()["id"]
    store = Store(settings.database_url)
    token = ReconcilerSession(store, "r").claim_for_start(job_id, 10)
    message = "dataset.path: there is no folder 'medquad'"
    DriverSession(store, job_id, token).fail("invalid_dataset", message, param="dataset.path")
    job = client.get(f"{JOBS}/{job_id}").json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "invalid_dataset", "message": message, "param": "dataset.path"}
    assert isinstance(job["finished_at"], int)
    store.close()


def test_the_openapi_document_shows_the_spec(client):
    """The schema is what people generate clients from: it must name the spec's fields, not say `object`."""
    document = client.get("/openapi.json").json()
    assert "learning_rate" in document["components"]["schemas"]["TrainingSpec"]["properties"]
