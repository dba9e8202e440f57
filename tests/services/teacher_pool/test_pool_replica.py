"""One replica without Serve: the class inside the deployment, over a real tiny cross-encoder."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.requests import Request
from tiny import byte_pairs, save_cross_encoder
from transformers import AutoTokenizer

from pipelines.errors import ContractError
from pipelines.teacher.contract import ScoreContract, contract_of
from pipelines.teacher.engine import load_engine
from pipelines.tokens import TokenPairs
from services.teacher_pool.messages import ScoreReply
from services.teacher_pool.metrics import ReplicaMetrics
from services.teacher_pool.replica import TeacherReplica

TOKEN = "the-cluster-s-token"  # noqa: S105 - of a test
QUERIES, PASSAGES = ["what is the cause of blood"] * 2, ["blood cause rare", "eye test common care"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "teacher", seed=1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Replicas set the threads of their process; here that is the process of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def contract(folder: Path) -> ScoreContract:
    return contract_of(folder, model_id="teacher", revision=None, max_length=48, dtype="fp32")


def user_config(folder: Path, **fields: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_dir": str(folder),
        "contract": contract(folder).to_dict(),
        "tokens_per_batch": 512,
        "calibrations_dir": None,
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "weights_version": 0,
        "hang_after_s": 60.0,
    }
    return config | fields


def pairs(replica: Any) -> TokenPairs:
    return replica._teacher.engine.encoder.tokenize(QUERIES, PASSAGES)


def new_replica() -> TeacherReplica:
    return TeacherReplica("teacher")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


def request(*, token: str | None = TOKEN, query: str = QUERIES[0]) -> Request:
    """What Serve's proxy passes on."""
    body = json.dumps({"query": query, "documents": PASSAGES}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def plain_logits(folder: Path) -> np.ndarray:
    engine = load_engine(folder, contract(folder), device=torch.device("cpu"), tokens_per_batch=512)
    return engine.score(QUERIES, PASSAGES)


def test_a_replica_gives_the_engine_s_bits(teacher: Path) -> None:
    async def score() -> ScoreReply:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, weights_version=3))
        return await replica.score(pairs(replica))

    reply = asyncio.run(score())
    assert (reply.contract_fingerprint, reply.weights_version) == (contract(teacher).fingerprint, 3)
    assert reply.num_tokens > 0
    assert reply.seconds > 0
    np.testing.assert_array_equal(reply.logits, plain_logits(teacher))


@pytest.mark.parametrize(("num_cpus", "cores"), [(0.3, 1), (1.0, 1), (2.0, 2)])
def test_a_replica_computes_on_the_cpus_it_was_given(teacher: Path, num_cpus: float, cores: int) -> None:
    """One core a batch: torch keeps its limit per thread, so it must hold where the forward pass runs."""
    torch.set_num_threads(4)

    async def score() -> tuple[int, set[int]]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, num_cpus=num_cpus))
        seen: set[int] = set()
        backend = replica._teacher.engine.backend
        inner = backend._forward
        backend._forward = lambda **batch: (seen.add(torch.get_num_threads()), inner(**batch))[1]
        await replica.score(pairs(replica))
        return backend.workers, seen

    assert asyncio.run(score()) == (cores, {1})


def test_new_weights_are_taken_in_place(teacher: Path, tmp_path: Path) -> None:
    other = save_cross_encoder(tmp_path / "other", seed=2)

    async def fingerprints() -> list[tuple[str, int]]:
        replica = new_replica()
        found = []
        for version, folder in enumerate((teacher, other)):
            await replica.reconfigure(user_config(folder, weights_version=version))
            reply = await replica.score(pairs(replica))
            found.append((reply.contract_fingerprint, reply.weights_version))
        return found

    assert asyncio.run(fingerprints()) == [(contract(teacher).fingerprint, 0), (contract(other).fingerprint, 1)]


def test_a_person_s_call_that_is_under_way_keeps_the_old_weights(teacher: Path, tmp_path: Path) -> None:
    """People do not take turns, so new weights may come while they are served: their engine must outlive that."""
    other = save_cross_encoder(tmp_path / "other", seed=2)
    entered, loaded = threading.Event(), threading.Event()

    async def ask() -> tuple[Any, Any]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        old = replica._teacher.engine
        measure = old.measure_pairs

        def slow(pairs: TokenPairs) -> Any:
            entered.set()
            assert loaded.wait(30)
            return measure(pairs)

        old.measure_pairs = slow
        asking = asyncio.create_task(replica(request()))
        await asyncio.to_thread(entered.wait, 30)
        await replica.reconfigure(user_config(other, weights_version=1))
        loaded.set()
        return json.loads((await asking).body), json.loads((await replica(request())).body)

    first, second = asyncio.run(ask())
    assert (first["weights_version"], second["weights_version"]) == (0, 1)
    assert first["contract"] == contract(teacher).fingerprint
    np.testing.assert_array_equal(np.float32(first["logits"]), plain_logits(teacher))
    assert second["contract"] == contract(other).fingerprint
    np.testing.assert_allclose(second["logits"], plain_logits(other), atol=1e-6)


def test_an_equal_config_loads_nothing(teacher: Path) -> None:
    """Serve sends the config again on changes that do not concern it, such as another number of replicas."""

    async def engines() -> list[object]:
        replica = new_replica()
        found = []
        for hang_after_s in (60.0, 60.0, 90.0):
            await replica.reconfigure(user_config(teacher, hang_after_s=hang_after_s))
            found.append(replica._teacher.engine)
        return found

    first, *others = asyncio.run(engines())
    assert all(other is first for other in others)


def test_only_the_gateway_may_ask_over_http(teacher: Path) -> None:
    """Ray's own token check does not cover what Serve's proxy passes on."""

    async def statuses() -> list[int]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        return [(await replica(request(token=token))).status_code for token in (None, "", "wrong", TOKEN)]

    assert asyncio.run(statuses()) == [401, 401, 401, 200]


def test_without_a_token_in_its_environment_a_replica_serves_nobody(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")

    async def status() -> int:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        return (await replica(request(token=""))).status_code

    assert asyncio.run(status()) == 401


def test_a_query_that_is_too_long_is_told_in_words(teacher: Path) -> None:
    async def ask() -> Any:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        return await replica(request(query="what is the cause of blood " * 30))

    answer = asyncio.run(ask())
    assert answer.status_code == 422
    assert "leaves no room for a passage" in json.loads(answer.body)["error"]


def test_one_person_too_many_is_asked_to_come_back(teacher: Path) -> None:
    async def ask() -> list[Any]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        release = threading.Event()
        measure = replica._teacher.engine.measure_pairs
        replica._teacher.engine.measure_pairs = lambda pairs: (release.wait(30), measure(pairs))[1]
        waiting = [asyncio.create_task(replica(request())) for _ in range(16)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert replica._turns.people == 16
        refused = await replica(request())
        release.set()
        return [refused, *await asyncio.gather(*waiting)]

    refused, *others = asyncio.run(ask())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert [other.status_code for other in others] == [200] * 16


def test_a_batch_call_waits_between_its_batches_while_a_person_is_served(teacher: Path) -> None:
    """Each pair is a batch of its own here; the person comes after the first, and is done before the last."""

    async def order() -> list[str]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, tokens_per_batch=1))
        engine, done = replica._teacher.engine, []
        many = engine.encoder.tokenize(QUERIES[:1] * 40, [f"blood cause {number}" for number in range(40)])
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        start = engine._memory.start

        def slow(batch: Any) -> Any:
            loop.call_soon_threadsafe(asked.set)
            time.sleep(0.005)
            return start(batch)

        engine._stages._forward = slow
        batch = asyncio.create_task(replica.score(many, job="a"))
        batch.add_done_callback(lambda _: done.append("batch"))
        await asked.wait()
        answer = await replica(request())
        assert answer.status_code == 200
        done.append("person")
        await batch
        return done

    assert asyncio.run(order()) == ["person", "batch"]


def test_a_call_that_never_ends_makes_the_replica_unhealthy(teacher: Path) -> None:
    async def look() -> None:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, hang_after_s=0.05))
        replica.check_health()
        release = threading.Event()
        measure = replica._teacher.engine.measure_pairs
        replica._teacher.engine.measure_pairs = lambda *a, **k: (release.wait(30), measure(*a, **k))[1]
        call = asyncio.create_task(replica.score(pairs(replica)))
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match=r"no progress for 0 s, it counts as hung after 0\.05"):
            replica.check_health()
        release.set()
        await call
        replica.check_health()

    asyncio.run(look())


def test_the_version_in_use_is_said_anew_with_each_health_check(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets a gauge that is not set again."""
    said: list[int] = []
    monkeypatch.setattr(ReplicaMetrics, "weights", lambda self, version: said.append(version))

    async def look() -> None:
        replica = new_replica()
        replica.check_health()
        for version in (3, 4):
            await replica.reconfigure(user_config(teacher, weights_version=version))
            replica.check_health()
            replica.check_health()

    asyncio.run(look())
    assert said == [3, 3, 4, 4]


def test_a_long_call_is_healthy_as_long_as_it_gets_on(teacher: Path) -> None:
    """A large model on a CPU takes minutes for a call: that is slow, not hung."""

    async def look() -> int:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, tokens_per_batch=1, hang_after_s=0.6))
        engine = replica._teacher.engine
        many = engine.encoder.tokenize(QUERIES[:1] * 40, [f"blood cause {number}" for number in range(40)])
        start = engine._memory.start
        # 40 batches of 40 ms: a call that is longer than what counts as hung, without a pause that is.
        engine._stages._forward = lambda batch: (time.sleep(0.04), start(batch))[1]
        call, looks = asyncio.create_task(replica.score(many)), 0
        while not call.done():
            replica.check_health()
            looks += 1
            await asyncio.sleep(0.04)
        await call
        return looks

    assert asyncio.run(look()) > 20, "it took much longer than what counts as hung"


def test_a_cancelled_call_stops_at_its_next_batch_and_is_no_hung_one(teacher: Path) -> None:
    """A job was cancelled: its replica computes nothing more for it, and is not taken for hung because of it."""

    async def look() -> tuple[int, int]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, tokens_per_batch=1, hang_after_s=0.2))
        engine, begun = replica._teacher.engine, []
        many = engine.encoder.tokenize(QUERIES[:1] * 400, [f"blood cause {number}" for number in range(400)])
        start, several = engine._memory.start, asyncio.Event()
        loop = asyncio.get_running_loop()

        def forward(batch: Any) -> Any:
            begun.append(batch)
            if len(begun) == 5:
                loop.call_soon_threadsafe(several.set)
            time.sleep(0.005)
            return start(batch)

        engine._stages._forward = forward
        call = asyncio.create_task(replica.score(many))
        await several.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.3)
        replica.check_health()
        stopped_at = len(begun)
        await asyncio.sleep(0.1)
        engine._stages._forward = start
        assert len((await replica.score(pairs(replica))).logits) == 2
        return stopped_at, len(begun)

    stopped_at, later = asyncio.run(look())
    assert stopped_at == later < 50


def test_a_broken_logit_is_the_caller_s_to_judge(tmp_path: Path) -> None:
    """A replica that raised would take the good pairs of the call with it."""
    folder = save_cross_encoder(tmp_path / "broken", seed=1)
    tensors = load_file(folder / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith("word_embeddings.weight")]
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    tensors[name][vocabulary["rare"]] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    async def score() -> np.ndarray:
        replica = new_replica()
        await replica.reconfigure(user_config(folder))
        return (await replica.score(pairs(replica))).logits

    async def ask() -> list[float | None]:
        replica = new_replica()
        await replica.reconfigure(user_config(folder))
        return json.loads((await replica(request())).body)["logits"]

    logits = asyncio.run(score())
    assert [logit is None for logit in asyncio.run(ask())] == [True, False], "JSON has no word for NaN"
    assert list(np.isfinite(logits)) == ["rare" not in passage for passage in PASSAGES] == [False, True]


def test_a_replica_refuses_weights_that_are_not_the_contract_s(teacher: Path, tmp_path: Path) -> None:
    """The folder was overwritten since the job wrote its contract down."""
    other = save_cross_encoder(tmp_path / "other", seed=2)
    config = user_config(teacher, model_dir=str(other))
    with pytest.raises(ContractError):
        asyncio.run(new_replica().reconfigure(config))


def test_an_unconfigured_replica_does_not_guess() -> None:
    with pytest.raises(RuntimeError, match="before it was configured"):
        asyncio.run(new_replica().score(byte_pairs([])))
