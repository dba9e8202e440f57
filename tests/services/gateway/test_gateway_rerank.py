"""Reranking through the gateway, with Serve played at the HTTP edge: the order, the numbers, and whose fault it was."""

import asyncio
import json
import math

import httpx
import pytest
from gateway_doubles import TOKEN
from starlette.applications import Starlette
from starlette.routing import Route
from tiny import save_cross_encoder

from pipelines.teacher.contract import contract_of
from services.gateway import pool_client
from services.gateway.problems import Problem
from services.store import DriverSession, ReconcilerSession, Teacher, TeacherTable
from services.teacher_pool.autoscale import IDLE_S, target_replicas
from services.teacher_pool.replica import TeacherReplica

NAME = "reranker-0123abcd"
CONTRACT = {"model_id": "org/reranker", "revision": None, "weights_hash": "ab", "max_length": 64, "dtype": "fp32"}
DOCUMENTS = ["bb", "dddd", "a", "ccc"]
BOTH = pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])


@pytest.fixture
def table(store):
    return TeacherTable(store)


@pytest.fixture
def pin(table, serve):
    """A teacher that is wanted, and runs."""

    def pinned(name=NAME, *, running=1, **fields):
        table.pin(Teacher(name=name, model_dir="d", contract=CONTRACT, **fields))
        if running:
            serve.deploy(name, running=running)
        return name

    return pinned


def ask(client, path="/v2/rerank", **fields):
    return client.post(path, json={"model": NAME, "query": "q", "documents": DOCUMENTS, **fields})


def code_of(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["error"]["code"]


# ---- what comes back


@BOTH
def test_documents_come_best_first_with_the_sigmoid_of_their_logit(client, pin, serve, path):
    pin()
    serve.logit = lambda _, document: len(document) - 2.5
    answer = ask(client, path)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [item["index"] for item in body["results"]] == [1, 3, 0, 2]
    assert [item["logit"] for item in body["results"]] == [1.5, 0.5, -0.5, -1.5]
    for item in body["results"]:
        assert item["relevance_score"] == pytest.approx(1 / (1 + math.exp(-item["logit"])), rel=1e-15)
        assert set(item) == {"index", "relevance_score", "logit"}
    assert body["meta"] == {"api_version": {"version": path[2]}, "billed_units": {"search_units": 1}}
    assert (body["model"], body["model_version"], body["contract"]) == (NAME, 3, "c" * 32)
    assert body["id"] != ask(client, path).json()["id"]
    assert serve.asked[0] == (NAME, {"query": "q", "documents": DOCUMENTS})


def test_raw_scores_are_the_logits(client, pin):
    pin()
    results = ask(client, raw_scores=True).json()["results"]
    assert [item["relevance_score"] for item in results] == [4.0, 3.0, 2.0, 1.0]


def test_extreme_logits_stay_scores_and_keep_their_order(client, pin, serve):
    """exp(1000) overflows, and at 40 the sigmoid is 1.0 already: the order must still be the logits'."""
    pin()
    serve.logit = lambda _, document: {"a": -1000.0, "bb": 41.0, "ccc": 1000.0, "dddd": 40.0}[document]
    results = ask(client).json()["results"]
    assert [item["index"] for item in results] == [3, 0, 1, 2]
    assert [item["relevance_score"] for item in results] == [1.0, 1.0, 1.0, 0.0]


def test_equals_keep_the_order_of_the_request(client, pin, serve):
    pin()
    serve.logit = lambda *_: 0.25
    assert [item["index"] for item in ask(client).json()["results"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_top_n(client, pin, top_n, count):
    pin()
    results = ask(client, top_n=top_n).json()["results"]
    assert [item["index"] for item in results] == [1, 3, 0, 2][:count]


def test_v1_gives_documents_back_with_all_their_fields(client, pin, serve):
    pin()
    documents = ["bb", {"text": "dddd", "id": "7", "title": "x"}]
    results = ask(client, "/v1/rerank", documents=documents, return_documents=True).json()["results"]
    assert [item["document"] for item in results] == [{"text": "dddd", "id": "7", "title": "x"}, {"text": "bb"}]
    assert serve.asked[0][1]["documents"] == ["bb", "dddd"], "the text is what is ranked"
    assert "document" not in ask(client, "/v1/rerank", documents=documents).json()["results"][0]


@BOTH
def test_what_a_teacher_decides_by_itself_is_accepted_and_changes_nothing(client, pin, path):
    pin()
    plain = ask(client, path).json()
    told = ask(client, path, max_tokens_per_doc=3, max_chunks_per_doc=1, priority=9).json()
    assert told["results"] == plain["results"]


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "change", "pointer"),
    [
        ("/v2/rerank", {"documents": []}, "#/documents"),
        ("/v1/rerank", {"documents": []}, "#/documents"),
        ("/v2/rerank", {"documents": ["x"] * 1001}, "#/documents"),
        ("/v1/rerank", {"documents": ["x"] * 1001}, "#/documents"),
        ("/v2/rerank", {"documents": ["x", {"text": "y"}]}, "#/documents/1"),
        ("/v1/rerank", {"documents": ["x", 5]}, "#/documents/1"),
        ("/v1/rerank", {"documents": [{"title": "x"}]}, "#/documents/0/text"),
        ("/v1/rerank", {"rank_fields": ["title", "text"]}, "#/rank_fields"),
        ("/v2/rerank", {"return_documents": True}, "#/return_documents"),
        ("/v2/rerank", {"query": ""}, "#/query"),
        ("/v2/rerank", {"query": None}, "#/query"),
        ("/v2/rerank", {"model": ""}, "#/model"),
        ("/v2/rerank", {"top_n": 0}, "#/top_n"),
        ("/v2/rerank", {"relevant_spans": {}}, "#/relevant_spans"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_named(client, pin, serve, path, change, pointer):
    pin()
    answer = ask(client, path, **change)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert serve.asked == []


def test_the_number_of_documents_is_told(client, pin):
    pin()
    assert "1000" in ask(client, documents=["x"] * 1001).json()["detail"]
    assert len(ask(client, documents=["x"] * 1000).json()["results"]) == 1000


@pytest.mark.parametrize(
    ("path", "change", "pointer"),
    [
        ("/v2/rerank", {"model": "\ud800"}, "#/model"),
        ("/v2/rerank", {"query": "\ud800"}, "#/query"),
        ("/v2/rerank", {"documents": ["a", "\ud800"]}, "#/documents/1"),
        ("/v1/rerank", {"documents": ["a", "\ud800"]}, "#/documents/1/text"),
        ("/v1/rerank", {"documents": [{"text": "a", "title": "\ud800"}]}, "#/documents/0/title"),
        ("/v1/rerank", {"documents": [{"text": "a", "title": 5}]}, "#/documents/0/title"),
        ("/v1/rerank", {"documents": [{"text": "a", "\ud800": "x"}]}, None),
    ],
)
def test_text_that_is_no_unicode_is_refused(client, pin, path, change, pointer):
    """A lone surrogate is JSON, and cannot be sent on as UTF-8: it must not become an internal error."""
    pin()
    body = {"model": NAME, "query": "q", "documents": ["d"], "return_documents": True} | change
    if path == "/v2/rerank":
        del body["return_documents"]
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert pointer is None or [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@BOTH
def test_long_texts_may_be_sent_and_longer_ones_not(client, pin, path):
    """A thousand long documents are more than the megabyte that suffices for a job, and still bounded."""
    pin()
    assert ask(client, path, documents=["x" * (3 << 20)] * 3).status_code == 200
    answer = ask(client, path, documents=["x" * (17 << 20)])
    assert (answer.status_code, code_of(answer)) == (413, "request_entity_too_large")
    assert str(16 << 20) in answer.json()["detail"]
    assert client.post("/v1/teachers", json={"job": "x" * (2 << 20)}).status_code == 413


# ---- which teacher


def test_a_model_s_id_will_do_where_it_is_one_teacher_s(client, pin):
    pin()
    assert ask(client, model="org/reranker").json()["model"] == NAME
    pin("reranker-ffffffff")
    answer = ask(client, model="org/reranker")
    assert (answer.status_code, code_of(answer)) == (404, "teacher_not_found")
    assert "several teachers have the model" in answer.json()["detail"]
    assert "reranker-ffffffff" in answer.json()["detail"]


def test_an_unknown_teacher_is_answered_with_the_known_ones(client, pin):
    pin()
    answer = ask(client, model="rerank-v3.5")
    assert (answer.status_code, code_of(answer), answer.json()["error"]["param"]) == (404, "teacher_not_found", "model")
    assert answer.json()["detail"] == f"there is no teacher 'rerank-v3.5'; teachers in use: {NAME}"


def test_a_teacher_that_nobody_wants_is_not_woken_by_a_request(client, pin, table, serve):
    """Whoever reranks needs a teacher that stays: pinned, or used by a job."""
    pin()
    table.unpin(NAME)
    before = table.get(NAME)
    answer = ask(client)
    assert (answer.status_code, code_of(answer)) == (409, "teacher_not_wanted")
    assert "POST /v1/teachers" in answer.json()["detail"]
    assert answer.headers["x-should-retry"] == "false"
    assert (table.get(NAME), serve.asked) == (before, [])


def test_the_teacher_of_a_running_job_may_be_asked(client, store, serve):
    job_id = store.create_job({"name": "j"}).id
    driver = DriverSession(store, job_id, ReconcilerSession(store, "r").claim_for_start(job_id, 30))
    driver.start()
    driver.use_teacher(Teacher(name=NAME, model_dir="d", contract=CONTRACT))
    serve.deploy(NAME)
    assert ask(client).status_code == 200
    driver.succeed({})
    assert ask(client).status_code == 409


# ---- pools that sleep, start, fail


def test_a_request_wakes_a_pool_that_was_scaled_to_zero(client, pin, table, clock):
    """The whole way but Ray: asked, noted, woken by the next look of the autoscaler."""
    pin(running=0, mode="auto", replicas=1, max_replicas=2)
    clock.advance(IDLE_S + 1)
    assert target_replicas(table.get(NAME), [], now=clock()) == 0
    assert table.set_replicas(NAME, 0, seen=1)
    answer = ask(client)
    assert (answer.status_code, code_of(answer), answer.headers["retry-after"]) == (503, "teacher_starting", "5")
    # The app's own store has the real clock; what counts is that it wrote.
    used_at = table.get(NAME).used_at
    assert used_at > clock()
    assert target_replicas(table.get(NAME), [], now=used_at) == 1


def test_use_is_noted_at_most_every_five_seconds(client, app, pin, monkeypatch):
    """A busy pool must not cost a commit per request."""
    pin()
    touched, now = [], [100.0]
    monkeypatch.setattr(TeacherTable, "touch", lambda _, name: touched.append(name))
    monkeypatch.setattr(pool_client.time, "monotonic", lambda: now[0])
    for seconds in (0, 1, 3.9, 0.2, 1):
        now[0] += seconds
        assert ask(client).status_code == 200
    assert touched == [NAME] * 2


@pytest.mark.parametrize(
    ("application", "code", "told"),
    [
        (None, "teacher_starting", "Serve is deploying it"),
        ({"status": "DEPLOYING", "message": "waits for 4 CPUs"}, "teacher_starting", "waits for 4 CPUs"),
        ({"status": "DEPLOY_FAILED", "message": "no such weights"}, "teacher_failed", "no such weights"),
    ],
)
def test_without_a_running_replica_nobody_waits(client, pin, serve, application, code, told):
    """Serve would hold the request until a replica came, for minutes or for ever."""
    pin(running=0)
    if application:
        serve.deploy(NAME, running=0, **application)
    answer = ask(client)
    assert (answer.status_code, code_of(answer)) == (503, code)
    assert told in answer.json()["detail"]
    assert ("retry-after" in answer.headers) == (code == "teacher_starting")
    assert serve.asked == []


def test_a_failed_update_does_not_stop_the_replicas_that_still_run(client, pin, serve):
    pin(running=0)
    serve.deploy(NAME, running=1, status="DEPLOY_FAILED", message="no such weights")
    assert ask(client).status_code == 200


def test_when_the_dashboard_is_away_the_proxy_is_tried(client, pin, serve, monkeypatch):
    """The two are different processes; a dashboard that restarts must not stop reranking."""
    pin()
    monkeypatch.setattr(type(client.app.state.context.pool_states), "get", lambda _: None)
    assert ask(client).status_code == 200


def test_a_proxy_that_is_not_there_is_a_pool_that_is_not_there_yet(client, pin, serve):
    pin()
    serve.down = True
    answer = ask(client)
    assert (answer.status_code, code_of(answer), answer.headers["retry-after"]) == (503, "teacher_starting", "5")


@pytest.mark.parametrize(
    ("reply", "status", "code", "told"),
    [
        (httpx.Response(404, text="Path '/x' not found."), 503, "teacher_starting", "404"),
        (httpx.Response(503, text="backpressure"), 503, "teacher_starting", "503"),
        (httpx.Response(500, text="Traceback: secret"), 502, "teacher_broken", "answered 500"),
        (httpx.Response(401, json={"error": "token"}), 502, "teacher_broken", "token"),
        (httpx.Response(200, text="<h1>It works!</h1>"), 502, "teacher_broken", "4 logits"),
        (httpx.Response(200, json=[1, 2]), 502, "teacher_broken", "4 logits"),
        (
            httpx.Response(200, json={"logits": [1.0], "weights_version": 0, "contract": "c"}),
            502,
            "teacher_broken",
            "4",
        ),
        (
            httpx.Response(422, json={"error": "query 'q' has 99 tokens", "reason": "invalid_dataset"}),
            422,
            "invalid_request",
            "query 'q' has 99 tokens",
        ),
        (
            httpx.Response(422, json={"error": "teacher logit nan for query 'q'", "reason": "invalid_model"}),
            502,
            "teacher_broken",
            "logit nan",
        ),
        (httpx.Response(422, text="?"), 502, "teacher_broken", "cannot score"),
    ],
)
def test_a_refusal_is_told_as_whose_fault_it_is(client, pin, serve, reply, status, code, told):
    pin()
    serve.answer = lambda _: reply
    answer = ask(client)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert told in answer.json()["detail"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(("given", "passed_on"), [({"retry-after": "7"}, "7"), ({}, "1")])
def test_a_busy_teacher_says_when_to_come_back(client, pin, serve, given, passed_on):
    pin()
    serve.answer = lambda _: httpx.Response(429, headers=given, json={"error": "the teacher is busy"})
    answer = ask(client)
    assert (answer.status_code, code_of(answer), answer.headers["retry-after"]) == (429, "teacher_busy", passed_on)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, None, "1.0"])
def test_a_logit_that_is_no_number_names_its_document(client, pin, serve, broken):
    """NaN sorts anywhere and is no JSON: a client would see an order, or a parse error, and no reason."""
    pin()
    serve.logit = lambda _, document: broken if document == "ccc" else 1.0
    answer = ask(client)
    assert (answer.status_code, code_of(answer)) == (502, "teacher_broken")
    assert f"gave document 3 the logit {broken}" in answer.json()["detail"]
    json.loads(answer.text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (httpx.ReadTimeout("slow"), 504, "teacher_timeout"),
        (httpx.ConnectTimeout("slow"), 503, "teacher_starting"),
        (httpx.RemoteProtocolError("server disconnected"), 502, "teacher_broken"),
    ],
)
def test_a_connection_that_fails_has_its_own_answer(client, pin, serve, error, status, code):
    pin()

    def fail(_):
        raise error

    serve.answer = fail
    answer = ask(client)
    assert (answer.status_code, code_of(answer)) == (status, code)


def test_an_answer_that_trickles_in_has_a_deadline_too(client, pin, app, monkeypatch):
    """The read timeout starts again with every byte; the whole has one of its own."""
    pin()

    class Never(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _):
            await asyncio.Event().wait()

    monkeypatch.setattr(pool_client, "_TIMEOUT_S", 0.01)
    context = app.state.context
    monkeypatch.setattr(context.pools._http, "_transport", Never())
    answer = ask(client)
    assert (answer.status_code, code_of(answer)) == (504, "teacher_timeout")


def test_only_so_many_are_served_at_once(app, pin, store, serve):
    """The 65th is asked to come back at once, rather than to wait behind 64; and room is given back."""
    pin()

    async def rush():
        release, entered = asyncio.Event(), asyncio.Semaphore(0)

        async def hold(request):
            entered.release()
            await release.wait()
            return serve.proxy(request)

        app.state.context.pools._http._transport = httpx.MockTransport(hold)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:

            def send():
                return client.post("/v2/rerank", json={"model": NAME, "query": "q", "documents": ["a"]})

            waiting = [asyncio.create_task(send()) for _ in range(64)]
            for _ in waiting:
                await entered.acquire()
            refused = await send()
            release.set()
            served = await asyncio.gather(*waiting)
            return refused, served, await send()

    refused, served, after = asyncio.run(rush())
    assert (refused.status_code, code_of(refused), refused.headers["retry-after"]) == (429, "too_many_requests", "1")
    assert [answer.status_code for answer in [*served, after]] == [200] * 65


def test_the_real_replica_understands_this_client(tmp_path, monkeypatch):
    """The double speaks our own words; here it is the class that runs inside Serve, over a real tiny teacher."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    folder = save_cross_encoder(tmp_path / "teacher", seed=1)
    contract = contract_of(folder, model_id="teacher", revision=None, max_length=48, dtype="fp32")
    config = {"model_dir": str(folder), "contract": contract.to_dict(), "tokens_per_batch": 512, "weights_version": 4}
    config |= {"calibrations_dir": None, "num_cpus": 1.0, "num_gpus": 0.0, "hang_after_s": 60.0}
    documents = ["blood cause rare", "eye test common care"]

    async def talk():
        replica = TeacherReplica("teacher")
        await replica.reconfigure(config)
        transport = httpx.ASGITransport(Starlette(routes=[Route("/t", replica.__call__, methods=["POST"])]))
        found = []
        for token, query in ((TOKEN, "cause of blood"), (TOKEN, "cause of blood " * 30), ("wrong", "cause of blood")):
            client = pool_client.PoolClient("http://serve.test", token, transport=transport)
            try:
                found.append(await client.score("t", query, documents))
            except Problem as problem:
                found.append((problem.status, problem.code, problem.detail))
        return found

    scores, too_long, refused = asyncio.run(talk())
    assert (len(scores.logits), scores.weights_version, scores.contract) == (2, 4, contract.fingerprint)
    assert len(set(scores.logits)) == 2
    assert too_long[:2] == (422, "invalid_request")
    assert "leaves no room for a passage" in too_long[2]
    assert refused == (502, "teacher_broken", "teacher 't' refuses this gateway's token")
