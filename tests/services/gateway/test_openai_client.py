"""The unmodified openai client is what many users will hold: its errors, retries and paging must work against us."""

import openai
import pytest
from openai import BaseModel, OpenAI
from openai.pagination import SyncCursorPage


class Job(BaseModel):
    """What a user's own type may look like: it takes the fields it knows."""

    id: str
    status: str


@pytest.fixture
def client(live_url):
    opened = OpenAI(base_url=f"{live_url}/v1", api_key="unused", max_retries=2)
    yield opened
    opened.close()


def test_jobs_through_the_client(client, spec):
    body = {"spec": spec}
    made = [client.post("/distillation/jobs", cast_to=Job, body=body) for _ in range(3)]
    assert made[0].status == "queued"
    pages = client.get_api_list("/distillation/jobs?limit=2", page=SyncCursorPage[Job], model=Job)
    assert {job.id for job in pages} == {job.id for job in made}, "auto-paging must go on with after="


def test_errors_through_the_client(client, spec):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.post("/distillation/jobs", cast_to=Job, body={"spec": {**spec, "rounds": 0}})
    assert (refused.value.param, refused.value.code) == ("rounds", "invalid_spec")
    assert "rounds" in refused.value.message
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        client.get("/distillation/jobs/ddjob-none", cast_to=Job)
    assert missing.value.code == "job_not_found"


def test_a_conflict_is_not_sent_three_times(client, app, spec, monkeypatch):
    """The client retries each 409 unless it is told not to."""
    calls = []
    store = app.state.context.store
    original = type(store).request_cancel
    monkeypatch.setattr(type(store), "request_cancel", lambda self, id_: (calls.append(id_), original(self, id_))[1])
    job = client.post("/distillation/jobs", cast_to=Job, body={"spec": spec})
    assert client.post(f"/distillation/jobs/{job.id}/cancel", cast_to=Job).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.post(f"/distillation/jobs/{job.id}/cancel", cast_to=Job)
    assert len(calls) == 2
