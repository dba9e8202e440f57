"""The unmodified cohere client, v1 and v2, against the gateway on a real socket: what its users will hold."""

import cohere
import httpx
import pytest

from services.store import Teacher, TeacherTable

NAME = "reranker-0123abcd"
CONTRACT = {"model_id": "org/reranker", "revision": None, "weights_hash": "ab", "max_length": 64, "dtype": "fp32"}
DOCUMENTS = ["bb", "dddd", "a", "ccc"]


@pytest.fixture(autouse=True)
def teacher(live_url, store, serve):
    TeacherTable(store).pin(Teacher(name=NAME, model_dir="d", contract=CONTRACT))
    serve.deploy(NAME)


@pytest.fixture
def v1(live_url):
    return cohere.Client(api_key="unused", base_url=live_url)


@pytest.fixture
def v2(live_url):
    return cohere.ClientV2(api_key="unused", base_url=live_url)


@pytest.fixture
def waits(monkeypatch):
    """How long the client waits before it sends again; it does not wait."""
    from cohere.core import http_client

    seconds = []
    monkeypatch.setattr(http_client.time, "sleep", seconds.append)
    return seconds


def test_rerank_v2(v2):
    reply = v2.rerank(model=NAME, query="q", documents=DOCUMENTS, top_n=3, max_tokens_per_doc=4096, priority=1)
    assert [item.index for item in reply.results] == [1, 3, 0]
    assert all(0 <= item.relevance_score <= 1 for item in reply.results)
    assert reply.id
    assert reply.meta.api_version.version == "2"
    assert reply.meta.billed_units.search_units == 1
    assert [item.logit for item in reply.results] == [4.0, 3.0, 2.0], "our own fields survive the client"
    assert (reply.model_version, reply.contract) == (3, "c" * 32)


def test_rerank_v1(v1):
    documents = ["bb", {"text": "dddd", "title": "four"}, "a"]
    reply = v1.rerank(model=NAME, query="q", documents=documents, return_documents=True, max_chunks_per_doc=10)
    assert [item.index for item in reply.results] == [1, 0, 2]
    assert [item.document.text for item in reply.results] == ["dddd", "bb", "a"]
    assert reply.results[0].document.title == "four"
    assert reply.meta.api_version.version == "1"


def test_an_unknown_model_is_the_client_s_not_found(v2):
    with pytest.raises(cohere.NotFoundError) as missing:
        v2.rerank(model="rerank-v3.5", query="q", documents=DOCUMENTS)
    assert NAME in missing.value.body["detail"], "the message names what could have been asked"


def test_a_bad_request_is_the_client_s_unprocessable_entity(v1):
    with pytest.raises(cohere.UnprocessableEntityError) as refused:
        v1.rerank(model=NAME, query="q", documents=DOCUMENTS, rank_fields=["title"])
    assert refused.value.body["errors"][0]["pointer"] == "#/rank_fields"


def test_a_busy_teacher_is_asked_again_when_it_said(v2, serve, waits):
    busy = [httpx.Response(429, headers={"retry-after": "7"}, json={"error": "the teacher is busy"})]
    serve.answer = lambda request: busy.pop() if busy else serve.score(request)
    assert v2.rerank(model=NAME, query="q", documents=DOCUMENTS).results[0].index == 1
    assert waits == [7.0]


def test_a_teacher_that_stays_busy_is_the_client_s_too_many_requests(v2, serve, waits):
    serve.answer = lambda _: httpx.Response(429, headers={"retry-after": "1"}, json={"error": "the teacher is busy"})
    with pytest.raises(cohere.TooManyRequestsError) as busy:
        v2.rerank(model=NAME, query="q", documents=DOCUMENTS)
    assert busy.value.body["error"]["code"] == "teacher_busy"
    assert waits == [1.0] * len(waits) != []


def test_a_pool_that_starts_is_waited_for_by_the_client(v1, serve, waits):
    """Serve has no replica at the first two looks: two 503 with Retry-After, then an answer."""
    running = iter([0, 0, 1])
    serve.before_look = lambda: serve.deploy(NAME, running=next(running))
    reply = v1.rerank(model=NAME, query="q", documents=DOCUMENTS)
    assert reply.results[0].index == 1
    assert waits == [5.0, 5.0]
