"""Health, version, request ids, and the shape of every error that no handler writes itself."""

import pytest
from sqlalchemy.exc import OperationalError

JOBS = "/v1/distillation/jobs"


def test_health_and_readiness(client, ray):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ready", "checks": {"database": "ok", "ray": "ok"}},
    )
    ray.down = True
    away = client.get("/readyz")
    assert away.status_code == 503
    assert away.json()["checks"] == {
        "database": "ok",
        "ray": "http://ray.test:8265 does not answer: connection refused",
    }
    assert client.get("/healthz").status_code == 200, "a restart of this process would not bring Ray back"


def test_readiness_without_a_database_keeps_its_address(client, app, monkeypatch):
    def away():
        raise OperationalError("SELECT 1", {}, Exception("could not connect to db.internal as admin"))

    monkeypatch.setattr(type(app.state.context.store), "ping", lambda _: away())
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["database"] == "does not answer"


def test_version(client):
    assert client.get("/v1/version").json() == {"name": "dualdistill", "version": "0.1.0", "api": "v1"}


def test_request_ids(client):
    """The client's own id comes back when it is harmless; anything else is replaced, and each error carries it."""
    assert client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {client.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 200)}
    assert len(made) == 2
    assert all(one.startswith("req-") for one in made)
    error = client.get(f"{JOBS}/nope", headers={"x-request-id": "mine-2"})
    assert error.headers["x-request-id"] == "mine-2"
    assert error.json()["instance"] == "urn:request:mine-2"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("DELETE", JOBS, 405, "method_not_allowed"),
        ("GET", f"{JOBS}/ddjob-none", 404, "job_not_found"),
        ("POST", f"{JOBS}/ddjob-none/cancel", 404, "job_not_found"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_every_error_has_both_shapes(client, method, path, status, code):
    answer = client.request(method, path)
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, body["status"], body["error"]["code"]) == (status, status, code)
    assert body["type"] == f"urn:dualdistill:problem:{code}"
    assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("password=hunter2"), 500, "internal_error"),
        (OperationalError("SELECT", {}, Exception("password=hunter2")), 503, "database_unavailable"),
    ],
)
def test_unexpected_errors_tell_nothing_but_the_request(client, app, monkeypatch, error, status, code):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(type(app.state.context.store), "get_job", broken)
    answer = client.get(f"{JOBS}/x", headers={"x-request-id": "r-7"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"] == "r-7"
    assert "hunter2" not in answer.text
