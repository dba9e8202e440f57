"""The Ray client: what is an answer and what is none. Confusing the two would kill healthy jobs."""

import json

import httpx
import pytest

from services.errors import RayUnavailable
from services.gateway.ray_jobs import RayJob, RayJobs


def client(answer):
    return RayJobs("http://ray.test", "t", transport=httpx.MockTransport(answer))


def test_the_requests_are_rays(ray):
    jobs = ray.client()
    jobs.ping()
    assert jobs.get("a-1") is None
    jobs.submit("python -m services.driver a 1", submission_id="a-1", num_cpus=2.0, num_gpus=0.5)
    assert jobs.get("a-1") == RayJob("RUNNING", "Job is currently running.")
    jobs.stop("a-1")
    jobs.stop("a-1")
    jobs.stop("unknown")
    assert jobs.get("a-1").status == "STOPPED"
    assert ray.submitted == [
        {
            "entrypoint": "python -m services.driver a 1",
            "submission_id": "a-1",
            "entrypoint_num_cpus": 2.0,
            "entrypoint_num_gpus": 0.5,
            "metadata": {"submitted_by": "dualdistill"},
        }
    ]
    assert "runtime_env" not in ray.submitted[0], "nothing but our own code may run in the cluster"


def test_rays_traceback_is_cut_to_its_end(ray):
    jobs = ray.client()
    jobs.submit("x", submission_id="a", num_cpus=1, num_gpus=0)
    with pytest.raises(RayUnavailable, match=r"HTTP 500: .*submission_id a already exists"):
        jobs.submit("x", submission_id="a", num_cpus=1, num_gpus=0)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, text="<html>nginx</html>"),
        httpx.Response(502, text=""),
        httpx.Response(200, text="<html>login</html>"),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={"status": "EXPLODED"}),
        httpx.Response(200, json={}),
        httpx.Response(302, headers={"location": "http://elsewhere"}),
        httpx.Response(401),
        httpx.Response(403),
    ],
)
def test_what_is_not_rays_answer_is_no_answer(answer):
    """A proxy's 404 or login page must not read as `this job does not exist`."""
    with pytest.raises(RayUnavailable):
        client(lambda _: answer).get("a-1")


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_no_connection_is_no_answer(error):
    def answer(request):
        raise error("broken", request=request)

    for call in (lambda c: c.ping(), lambda c: c.get("a"), lambda c: c.stop("a")):
        with pytest.raises(RayUnavailable, match="does not answer"):
            call(client(answer))


def test_the_token_stays_on_the_host_it_is_for(monkeypatch):
    """No redirect is followed and no proxy of the environment is used: both would hand the token on."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    seen = []

    def answer(request):
        seen.append((request.url.host, request.headers["authorization"]))
        return httpx.Response(307, headers={"location": "http://evil.test/"})

    with pytest.raises(RayUnavailable):
        client(answer).ping()
    assert seen == [("ray.test", "Bearer t")]
    assert RayJobs("http://ray.test", "t")._http._mounts == {}


def test_without_a_token_no_header_is_sent():
    def answer(request):
        assert "authorization" not in request.headers
        return httpx.Response(200, text=json.dumps({"version": "4"}))

    RayJobs("http://ray.test", None, transport=httpx.MockTransport(answer)).ping()
