"""A protocol double of Ray's Jobs REST API at the HTTP edge, and two smaller stand-ins.

The double answers as Ray 2.60 was read and measured to answer: bearer token on everything, 404 with "does not exist",
HTTP 500 with a traceback for a submission id it knows. The real Ray is in tests/system.
"""

import json
import re

import httpx

from services.gateway.ray_jobs import RayJobs

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
