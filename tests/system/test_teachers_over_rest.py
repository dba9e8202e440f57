"""Teachers as users have them: pinned over REST, scaled while they work, reranking for the unmodified cohere client."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cohere
import numpy as np
import pytest
import torch
from miniature import finished, miniature, ranked_rows
from safetensors.torch import load_file, save_file
from tiny import save_cross_encoder, write_beir
from transformers import AutoTokenizer

from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.engine import load_engine
from services.cli.client import GatewayClient
from services.cli.stack import Stack

QUERY = "what is the cause of blood"
DOCUMENTS = ["lung test mild", "blood cause severe", "eye risk", "the cause of blood in the kidney"]
POISON = "chronic"


@pytest.fixture(scope="module")
def folder(data_root: Path) -> Path:
    return save_cross_encoder(data_root / "reranker", seed=4)


@pytest.fixture
def pinned(client: GatewayClient, folder: Path) -> Iterator[dict[str, Any]]:
    """The teacher, running, with one replica."""
    body = {"model": {"id": f"./{folder.name}"}, "max_length": 128, "cpus_per_replica": 0.3, "tokens_per_batch": 512}
    teacher = client.add_teacher(body)
    assert client.add_teacher(body)["name"] == teacher["name"], "asking twice is asking once"
    until(lambda: client.teacher(teacher["name"])["status"] == "running")
    yield client.teacher(teacher["name"])
    client.remove_teacher(teacher["name"])
    until(lambda: client.teacher(teacher["name"])["replicas"]["running"] == 0)


def until(what: Callable[[], bool], *, within_s: float = 120.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, f"it did not happen within {within_s} s"
        time.sleep(0.3)


def test_rerank_gives_the_teacher_s_own_order_and_logits(stack: Stack, pinned: dict[str, Any], folder: Path) -> None:
    """Through the gateway, Serve's proxy and a replica: the engine's numbers, Cohere's shape."""
    contract = ScoreContract.from_dict(pinned["contract"])
    engine = load_engine(folder, contract, device=torch.device("cpu"), tokens_per_batch=512)
    logits = engine.score([QUERY] * len(DOCUMENTS), DOCUMENTS)
    engine.close()
    order = np.argsort(-logits, kind="stable").tolist()
    for client in (cohere.ClientV2, cohere.Client):
        answer = client(api_key="unused", base_url=stack.gateway_url).rerank(
            model=pinned["name"], query=QUERY, documents=DOCUMENTS, top_n=3
        )
        assert [item.index for item in answer.results] == order[:3]
        scores = [item.relevance_score for item in answer.results]
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[order[:3]].astype(float))), rtol=1e-4)
    answer = GatewayClient(stack.gateway_url).rerank(pinned["model"], QUERY, DOCUMENTS)
    assert answer["contract"] == pinned["contract_fingerprint"]
    np.testing.assert_allclose([item["logit"] for item in answer["results"]], logits[order], atol=1e-4)


def test_a_job_on_a_pinned_pool_is_scaled_while_it_scores(
    stack: Stack, client: GatewayClient, pinned: dict[str, Any]
) -> None:
    """1 -> 3 replicas under a running job; people are served meanwhile; the pool outlives the job."""
    spec = miniature(
        seed=21,
        dataset={"path": "medquad", "unlabelled": {"max_queries": 300, "min_confidence": 0.2}},
        teacher={
            "model": {"id": pinned["model"]},
            "max_length": 128,
            "train": None,
            "dtype": "auto",
            "tokens_per_batch": 512,
        },
        candidates={"bm25": {"top_k": 30}, "dense": {"top_k": 20}, "max_candidates": 40, "queries_per_chunk": 4},
    )
    job_id = client.submit(spec)["id"]
    until(lambda: client.job(job_id)["progress"].get("lists_committed", 0) > 0)
    assert client.teacher(pinned["name"])["jobs"] == [job_id]
    scaled = client.scale_teacher(pinned["name"], {"replicas": 3})
    assert scaled["replicas"]["target"] == 3
    answer = client.rerank(pinned["name"], QUERY, DOCUMENTS)
    assert len(answer["results"]) == len(DOCUMENTS)
    until(lambda: client.teacher(pinned["name"])["replicas"]["running"] == 3)
    job = finished(client, job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    rows = ranked_rows(stack.root, job_id)
    assert len({(row["round"], row["query_id"]) for row in rows}) == len(rows) == 460
    after = client.teacher(pinned["name"])
    assert (after["jobs"], after["backlog_tokens"], after["status"]) == ([], 0, "running")


def test_a_pair_that_breaks_the_teacher_is_left_out_and_told(
    stack: Stack, client: GatewayClient, data_root: Path
) -> None:
    """One document with a word whose embedding is NaN; its pairs are in the job's events, every list is committed."""
    data = write_beir(data_root / "poisoned")
    documents = [json.loads(line) for line in (data / "corpus.jsonl").read_text().splitlines()]
    for number, document in enumerate(documents):
        document["text"] = document["text"].replace(POISON, "mild") + (f" {POISON}" if number == 40 else "")
    (data / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    broken = save_cross_encoder(data_root / "breakable", seed=4)
    tensors = load_file(broken / "model.safetensors")
    row = AutoTokenizer.from_pretrained(broken).get_vocab()[POISON]
    tensors["bert.embeddings.word_embeddings.weight"][row] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})

    spec = miniature(
        dataset={"path": "poisoned", "unlabelled": {"min_confidence": 0.2}},
        teacher={"model": {"id": "./breakable"}, "train": None, "replicas": 1, "max_length": 64},
        candidates={"bm25": {"top_k": 4}, "dense": None, "max_candidates": 4},
        evaluation={"max_queries": 8},
    )
    job = finished(client, client.submit(spec)["id"])
    assert job["status"] == "succeeded", job["error"]
    told = [event for event in client.events(job["id"]) if event["type"] == "scoring.quarantined"]
    assert told
    assert {event["data"]["doc_id"] for event in told} == {"d40"}
    assert all("teacher logit nan" in event["message"] for event in told)
    rows = ranked_rows(stack.root, job["id"])
    assert len({(row["round"], row["query_id"]) for row in rows}) == len(rows)
    assert not [row for row in rows if any(item["doc_id"] == "d40" for item in row["candidates"])]
