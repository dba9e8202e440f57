"""The pool on a real Ray cluster of three nodes: scaled, killed, hung, poisoned, refreshed, shared.

Real engines over tiny teachers; the accidents are in `ray_side/faulty_replica`.
"""

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from pool_cluster import HANG_AFTER_S, PoolCluster, logits_of, pool_cluster, requests_of, teacher_of
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from tiny import ASPECTS, FILLER, TOPICS, save_cross_encoder

from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest
from services.store import Teacher

HARMLESS = [word for word in FILLER if word != "chronic"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolCluster]:
    with pool_cluster(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture(autouse=True)
def no_accidents(cluster: PoolCluster) -> None:
    for path in cluster.faults.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed in range(2):
        save_cross_encoder(folder / f"teacher-{seed}", seed=seed)
    return folder


def passage(number: int) -> str:
    """A different text for every number, without the deadly word."""
    words = random.Random(number)  # noqa: S311
    topic, aspect = TOPICS[number % 12], ASPECTS[number // 12 % 5]
    return " ".join([topic, aspect, *words.choices(HARMLESS, k=3 + number % 7), str(number)])


def by_key(answers: list[ScoreAnswer]) -> dict[int, ScoreAnswer]:
    counts = Counter(answer.key for answer in answers)
    assert set(counts.values()) == {1}, "each request is answered exactly once"
    return {answer.key: answer for answer in answers}


def test_replicas_change_the_speed_and_nothing_else(cluster: PoolCluster, models: Path) -> None:
    """1, 3, and 1 again while calls run: the same bits, no replica restarted, no call repeated."""
    one, three = (teacher_of(models / "teacher-0", replicas=count) for count in (1, 3))
    requests = requests_of(one, 60, 256, passage)
    cluster.want(one)
    (first,) = cluster.replicas(one.name)
    alone = by_key(list(cluster.scorer(one).score_all(requests[:20], expected_pairs=5120)))

    (cluster.faults / "slow").write_text("0.3")
    scorer, answers, seen = cluster.scorer(one), [], set()
    for number, answer in enumerate(scorer.score_all(iter(requests), expected_pairs=15360)):
        answers.append(answer)
        if number == 2:
            cluster.want(three)
        if number == 40:
            seen = set(cluster.replicas(one.name))
            cluster.want(one, wait=False)
    found = by_key(answers)
    assert first in seen, "the first replica was not restarted"
    assert len(seen) == 3
    assert sorted(found) == list(range(60))
    for key in range(20):
        np.testing.assert_array_equal(found[key].logits, alone[key].logits)
    np.testing.assert_allclose(found[59].logits, logits_of(one, requests[59].pairs), atol=1e-5, rtol=2e-6)
    cluster.until(lambda: len(cluster.replicas(one.name)) == 1)
    assert retries(scorer) == 0, "a replica that had to go finished what it had begun"


def retries(scorer: Any) -> int:
    return sum(scorer.retried.values())


def test_ten_deaths_at_random_points_lose_and_repeat_nothing(cluster: PoolCluster, models: Path) -> None:
    teacher = teacher_of(models / "teacher-0", replicas=3)
    requests = requests_of(teacher, 40, 256, passage)
    cluster.want(teacher)
    for number in range(10):
        (cluster.faults / f"die-{number}").touch()
    scorer = cluster.scorer(teacher)
    answers = []
    rounds = 0
    while list(cluster.faults.glob("die-*")):
        rounds += 1
        assert rounds < 20
        answers.append(by_key(list(scorer.score_all(iter(requests), expected_pairs=10240))))
    wanted = logits_of(teacher, requests[7].pairs)
    for found in answers:
        assert sorted(found) == list(range(40))
        assert not any(answer.quarantined for answer in found.values())
        np.testing.assert_allclose(found[7].logits, wanted, atol=1e-5, rtol=2e-6)
    assert scorer.retried["ActorDiedError"] >= 10


def test_one_poison_pair_among_five_thousand(cluster: PoolCluster, models: Path) -> None:
    """It kills every replica that touches it (`os._exit`); it is found by halving, and all others are scored."""
    teacher = teacher_of(models / "teacher-0", replicas=2)

    def mostly_harmless(number: int) -> str:
        return "blood risk chronic" if number == 3210 else passage(number)

    requests = requests_of(teacher, 20, 250, mostly_harmless)
    cluster.want(teacher)
    found = by_key(list(cluster.scorer(teacher).score_all(iter(requests), expected_pairs=5000)))
    poison = {(key, row): why for key, answer in found.items() for row, why in answer.quarantined.items()}
    assert list(poison) == [(12, 210)]
    assert "ActorDiedError" in poison[12, 210]
    for key, answer in found.items():
        good = np.array([row not in answer.quarantined for row in range(250)])
        np.testing.assert_allclose(
            answer.logits[good], logits_of(teacher, requests[key].pairs)[good], atol=1e-5, rtol=2e-6
        )


def test_a_hung_replica_is_replaced_and_its_call_repeated(cluster: PoolCluster, models: Path) -> None:
    teacher = teacher_of(models / "teacher-0", replicas=2)
    requests = requests_of(teacher, 20, 256, passage)
    cluster.want(teacher)
    before = set(cluster.replicas(teacher.name))
    (cluster.faults / "slow").write_text("0.05")
    (cluster.faults / "hang").touch()
    started = time.monotonic()
    scorer = cluster.scorer(teacher)
    found = by_key(list(scorer.score_all(iter(requests), expected_pairs=5120)))
    assert time.monotonic() - started > HANG_AFTER_S, "nothing hung"
    assert sorted(found) == list(range(20))
    assert not any(answer.quarantined for answer in found.values())
    cluster.until(lambda: len(cluster.replicas(teacher.name)) == 2)
    assert before - set(cluster.replicas(teacher.name)), "the hung one is gone"


def test_new_weights_in_mid_stream(cluster: PoolCluster, models: Path) -> None:
    """In place: no process is new. Every answer is the work of the version that it names, and of that one alone."""
    old = teacher_of(models / "teacher-0", replicas=2)
    new_contract = teacher_of(models / "teacher-1").contract
    new = Teacher(
        **{**vars(old), "model_dir": str(models / "teacher-1"), "contract": new_contract, "weights_version": 1}
    )
    requests = requests_of(old, 40, 700, passage)
    cluster.want(old)
    pids = set(cluster.replicas(old.name))
    (cluster.faults / "slow").write_text("0.1")
    scorer, answers = cluster.scorer(old), []
    for number, answer in enumerate(scorer.score_all(iter(requests), expected_pairs=28000)):
        answers.append(answer)
        if number == 5:
            scorer.expect(1, ScoreContract.from_dict(new_contract))
            cluster.want(new, wait=False)
    found = by_key(answers)
    assert sorted(found) == list(range(40))
    versions = Counter(answer.weights_version for answer in answers)
    assert set(versions) == {0, 1}
    assert versions[0] >= 5
    assert set(cluster.replicas(old.name)) == pids
    for key, answer in found.items():
        teacher = (old, new)[answer.weights_version]
        np.testing.assert_allclose(answer.logits, logits_of(teacher, requests[key].pairs), atol=1e-5, rtol=2e-6)


def test_a_pool_may_fall_asleep_and_wake_up_under_a_job(cluster: PoolCluster, models: Path) -> None:
    """Autoscaled to nothing between two rounds, or by a user in the middle of one: the same client goes on."""
    teacher = teacher_of(models / "teacher-0", replicas=1)
    requests = requests_of(teacher, 20, 256, passage)
    cluster.want(teacher)
    (cluster.faults / "slow").write_text("0.1")
    scorer, answers = cluster.scorer(teacher), []
    waking = threading.Timer(5, lambda: cluster.want(teacher, wait=False))
    for number, answer in enumerate(scorer.score_all(iter(requests), expected_pairs=5120)):
        answers.append(answer)
        if number == 5:
            cluster.want()
            waking.start()
    waking.join()
    found = by_key(answers)
    assert sorted(found) == list(range(20))
    assert not any(answer.quarantined for answer in found.values())
    again = by_key(list(scorer.score_all(iter(requests), expected_pairs=5120)))
    np.testing.assert_array_equal(again[19].logits, found[19].logits)


def test_two_jobs_share_a_pool_by_tokens(cluster: PoolCluster, models: Path) -> None:
    """One sends four times as many pairs in a call; while both have work, both get the same share of the replicas."""
    teacher = teacher_of(models / "teacher-0", replicas=2)
    cluster.want(teacher)
    (cluster.faults / "slow").write_text("0.1")
    done: dict[str, list[tuple[float, int]]] = {"large": [], "small": []}

    def run(job: str, count: int, pairs_each: int) -> None:
        requests = requests_of(teacher, count, pairs_each, passage)
        barrier.wait(60)
        for answer in cluster.scorer(teacher, job=job).score_all(iter(requests), expected_pairs=count * pairs_each):
            done[job].append((time.monotonic(), len(answer.logits)))

    barrier = threading.Barrier(2)
    threads = [
        threading.Thread(target=run, args=("large", 40, 512)),
        threading.Thread(target=run, args=("small", 80, 256)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {job: len(times) for job, times in done.items()} == {"large": 40, "small": 80}
    start = max(times[0][0] for times in done.values())
    end = min(times[-1][0] for times in done.values())
    shares = {job: sum(pairs for at, pairs in times if start <= at <= end) for job, times in done.items()}
    assert min(shares.values()) > 0.6 * max(shares.values()), shares


def test_people_are_served_by_the_same_replicas_while_a_job_scores(cluster: PoolCluster, models: Path) -> None:
    """Over Serve's HTTP proxy, with the cluster's token; the job loses nothing by it."""
    teacher = teacher_of(models / "teacher-0", replicas=1)
    requests = requests_of(teacher, 30, 256, passage)
    cluster.want(teacher)
    (cluster.faults / "slow").write_text("0.3")
    texts = [passage(number) for number in range(10)]
    body = {"query": "what is the cause of pain", "documents": texts}
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    url = f"{cluster.proxy_url}/{teacher.name}"
    answered, answers = [], []
    for number, answer in enumerate(cluster.scorer(teacher).score_all(iter(requests), expected_pairs=7680)):
        answers.append(answer)
        if number % 5 == 0:
            answered.append(httpx.post(url, json=body, headers=headers, timeout=60).raise_for_status().json())
    assert sorted(by_key(answers)) == list(range(30))
    assert len(answered) == 6
    for reply in answered:
        assert (reply["weights_version"], reply["contract"]) == (0, contract_fingerprint(teacher))
        np.testing.assert_allclose(reply["logits"], answers_of(requests[0], answers)[:10], atol=1e-5, rtol=2e-6)
    assert httpx.post(url, json=body, timeout=60).status_code == 401


def contract_fingerprint(teacher: Teacher) -> str:
    return ScoreContract.from_dict(teacher.contract).fingerprint


def answers_of(request: ScoreRequest, answers: list[ScoreAnswer]) -> np.ndarray:
    return by_key(answers)[request.key].logits


def test_ray_exports_the_pool_s_numbers_with_teacher_and_job(cluster: PoolCluster, models: Path) -> None:
    teacher = teacher_of(models / "teacher-0", replicas=1)
    requests = requests_of(teacher, 4, 300, passage)
    cluster.want(teacher)
    (cluster.faults / "die-0").touch()
    scorer = cluster.scorer(teacher, job="measured")
    runs = 0
    while not scorer.retried:
        runs += 1
        assert runs < 50
        list(scorer.score_all(iter(requests), expected_pairs=1200))
    tags = f'job="measured".*teacher="{teacher.name}"'
    wanted = (
        r"pairs_scored_total|tokens_scored_total|forward_seconds_(bucket|sum|count)|batch_fill|padding_waste|tie_rate|"
        r"queue_depth|backlog_tokens|calls_in_flight|retries_total"
    )
    pattern = re.compile(rf"^ray_dualdistill_({wanted}){{.*{tags}.*}} (\S+)$", re.MULTILINE)

    numbers: dict[str, float] = Counter()

    def all_are_there() -> bool:
        numbers.clear()
        for text in cluster.exported():
            for name, _, value in pattern.findall(text):
                numbers[name] += float(value)
        return names <= numbers.keys() and numbers["backlog_tokens"] == 0

    names = set(re.sub(r"_\(.*?\)", "_count", wanted).split("|"))
    # An export every few seconds: the first that has every name may still be of the time when the job scored.
    cluster.until(all_are_there, within_s=60)
    assert numbers["retries_total"] == sum(scorer.retried.values()) >= 1
    assert 0 < numbers["padding_waste"] < 1
    assert numbers["tie_rate"] == 0
    version = re.compile(rf'^ray_dualdistill_weights_version{{.*teacher="{teacher.name}".*}} 0', re.MULTILINE)
    # The replica that came for the dead one says so whenever it is asked for its health.
    cluster.until(lambda: any(version.search(text) for text in cluster.exported()), within_s=60)


def test_serve_s_controller_may_die(cluster: PoolCluster, models: Path) -> None:
    """Calls go on without it, and it comes back with the same pools."""
    teacher = teacher_of(models / "teacher-0", replicas=2)
    requests = requests_of(teacher, 40, 256, passage)
    cluster.want(teacher)
    pids = set(cluster.replicas(teacher.name))
    (cluster.faults / "slow").write_text("0.2")
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    pid = ray.get(controller.get_pid.remote())
    answers = []
    for number, answer in enumerate(cluster.scorer(teacher).score_all(iter(requests), expected_pairs=10240)):
        answers.append(answer)
        if number == 3:
            os.kill(pid, signal.SIGKILL)
    assert sorted(by_key(answers)) == list(range(40))
    cluster.until(lambda: ray.get(controller.get_pid.remote()) != pid)
    cluster.until(lambda: set(cluster.replicas(teacher.name)) == pids)


def test_a_node_that_is_lost_takes_no_pair_with_it(cluster: PoolCluster, models: Path) -> None:
    """Last of these tests: the cluster is smaller afterwards."""
    teacher = teacher_of(models / "teacher-0", replicas=4, cpus_per_replica=1.0)
    requests = requests_of(teacher, 60, 256, passage)
    cluster.want(teacher)
    nodes = cluster.replicas(teacher.name)
    doomed = next(worker for worker in cluster.workers if worker.node_id in nodes.values())
    (cluster.faults / "slow").write_text("0.3")
    scorer, answers = cluster.scorer(teacher), []
    for number, answer in enumerate(scorer.score_all(iter(requests), expected_pairs=15360)):
        answers.append(answer)
        if number == 8:
            cluster.lose(doomed)
    found = by_key(answers)
    assert sorted(found) == list(range(60))
    assert not any(answer.quarantined for answer in found.values())
    np.testing.assert_allclose(found[59].logits, logits_of(teacher, requests[59].pairs), atol=1e-5, rtol=2e-6)
    cluster.until(lambda: doomed.node_id not in cluster.replicas(teacher.name).values())
