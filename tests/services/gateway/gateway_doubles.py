"""Protocol doubles of Ray's Jobs API and of Ray Serve (its API and its proxy) at the HTTP edge, and two stand-ins.

The doubles answer as Ray 2.60 was read and measured to answer: bearer token on everything, 404 with "does not exist",
HTTP 500 with a traceback for a submission id it knows. The real Ray is in tests/system.
"""

import json
import re

import httpx

from services.gateway.pool_client import PoolClient
from services.gateway.pool_states import PoolStates
from services.gateway.ray_jobs import RayJobs
from services.teacher_pool.control import PoolSettings, ServeControl
from services.teacher_pool.messages import DEPLOYMENT_NAME

TOKEN = "ray-token"  # noqa: S105 - of the double


class Clock:
    """Time that moves when a test says so."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class RayDouble:
    """The state behind Ray's Jobs REST API, and switches for how it misbehaves."""

    def __init__(self):
        self.jobs = {}
        self.submitted = []
        self.requests = []
        self.down = False
        self.before = lambda _request: None
        self.after = lambda _request: None

    def transport(self):
        return httpx.MockTransport(self.answer)

    def client(self):
        return RayJobs("http://ray.test:8265", TOKEN, transport=self.transport())

    def running(self):
        return [name for name, job in self.jobs.items() if job["status"] == "RUNNING"]

    def end(self, submission_id, status, message=""):
        self.jobs[submission_id] = {"status": status, "message": message}

    def answer(self, request):
        self.requests.append(f"{request.method} {request.url.path}")
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        self.before(request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return httpx.Response(401, text="Unauthorized: Missing authentication token")
        response = self._answer(request)
        self.after(request)
        return response

    def _answer(self, request):
        path = request.url.path
        if path == "/api/version":
            return httpx.Response(200, json={"version": "4", "ray_version": "2.60.0"})
        if request.method == "POST" and path == "/api/jobs/":
            body = json.loads(request.content)
            name = body["submission_id"]
            if name in self.jobs:
                trace = (
                    f"Traceback (most recent call last):\nValueError: Job with submission_id {name} already exists\n."
                )
                return httpx.Response(500, text=trace)
            self.jobs[name] = {"status": "RUNNING", "message": "Job is currently running."}
            self.submitted.append(body)
            return httpx.Response(200, json={"job_id": name, "submission_id": name})
        match = re.fullmatch(r"/api/jobs/([^/]+)(/stop)?", path)
        job = self.jobs.get(match[1])
        if job is None:
            return httpx.Response(404, text=f"Job {match[1]} does not exist")
        if match[2]:
            if job["status"] in {"RUNNING", "PENDING"}:
                self.end(match[1], "STOPPED", "Job was intentionally stopped.")
            return httpx.Response(200, json={"stopped": True})
        return httpx.Response(200, json={"type": "SUBMISSION", "submission_id": match[1], **job})


class Pools:
    """Stands where ServeControl stands: remembers what it was asked to serve."""

    def __init__(self):
        self.asked = []

    def apply(self, teachers):
        self.asked.append([teacher.name for teacher in teachers])
        return True


class ServeDouble:
    """Ray Serve: applications behind the dashboard's API, and the proxy that passes a person's texts to replicas.

    A replica's logits are `logit(query, document)`. `answer` may be replaced to misbehave, and `before_look` to let
    something happen before the dashboard answers.
    """

    def __init__(self):
        self.applications = {}
        self.puts = []
        self.looks = 0
        self.asked = []
        self.down = False
        self.answer = self.score
        self.before_look = lambda: None
        self.logit = lambda _query, document: float(len(document))

    def deploy(self, name, *, running=1, status="RUNNING", message=""):
        self.applications[name] = {
            "name": name,
            "status": status,
            "message": "",
            "deployments": {
                DEPLOYMENT_NAME: {
                    "message": message,
                    "replicas": [{"state": "RUNNING"}] * running + [{"state": "STARTING"}],
                }
            },
        }

    def states(self, **options):
        transport = httpx.MockTransport(self.dashboard)
        return PoolStates("http://ray.test:8265", TOKEN, transport=transport, **({"max_age_s": 0} | options))

    def control(self):
        pools = PoolSettings(proxy_host="127.0.0.1", proxy_port=8410, hang_after_s=600)
        return ServeControl("http://ray.test:8265", TOKEN, pools, transport=httpx.MockTransport(self.dashboard))

    def pools(self):
        return PoolClient("http://serve.test:8410", TOKEN, transport=httpx.MockTransport(self.proxy))

    def dashboard(self, request):
        assert request.url.path == "/api/serve/applications/"
        self.before_look()
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return httpx.Response(401, text="Unauthorized: Missing authentication token")
        if request.method == "PUT":
            self.puts.append(json.loads(request.content))
            self.applications = {}
            for application in self.puts[-1]["applications"]:
                self.deploy(application["name"], running=application["deployments"][0]["num_replicas"])
            return httpx.Response(200)
        self.looks += 1
        return httpx.Response(200, json={"applications": self.applications})

    def proxy(self, request):
        """What the replica's `__call__` does (services/teacher_pool/replica.py), behind Serve's routes."""
        assert request.method == "POST"
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        name = request.url.path.removeprefix("/")
        if name not in self.applications:
            return httpx.Response(404, text=f"Path '/{name}' not found.")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return httpx.Response(401, json={"error": "the cluster's token is missing or wrong"})
        self.asked.append((name, json.loads(request.content)))
        return self.answer(request)

    def score(self, request):
        body = json.loads(request.content)
        logits = [self.logit(body["query"], document) for document in body["documents"]]
        # Not json=: Python's json gives NaN too, and httpx would refuse to.
        return httpx.Response(200, text=json.dumps({"logits": logits, "weights_version": 3, "contract": "c" * 32}))
