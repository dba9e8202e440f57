"""PoolHost against a real SQLite store: the driver writes down what it wants, and deploys nothing itself.

Serve's status is played; the pool itself is in tests/system.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import RecordingJournal, byte_pairs, tiny_spec

from pipelines.errors import Cancelled
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.scorer import ScoreRequest
from pipelines.tokens import TokenPairs
from services.driver.hosting import PoolHost
from services.errors import TeacherNotDeployable, TeacherPoolError
from services.store import DriverSession, Store, TeacherTable
from services.teacher_pool import deployment
from services.teacher_pool.control import application_name
from services.teacher_pool.messages import ScoreReply

CONTRACT = ScoreContract(model_id="m", revision=None, weights_hash="ab", max_length=64, dtype="fp32")
NAME = application_name(CONTRACT)


class Answering:
    """A handle whose every call is answered with zeros."""

    @property
    def score(self) -> "Answering":
        return self

    def remote(self, pairs: TokenPairs, *, job: str) -> SimpleNamespace:
        assert job == "job"
        reply = ScoreReply(CONTRACT.fingerprint, 0, np.zeros(len(pairs), np.float32), num_tokens=20, seconds=0.5)
        return Reply(reply)


class Reply:
    def __init__(self, reply: ScoreReply) -> None:
        self._reply = reply

    def result(self, timeout_s: float) -> ScoreReply:
        assert timeout_s > 2 * HANG_AFTER_S, "a hung replica is replaced first"
        return self._reply


HANG_AFTER_S = 7.0
PAIR = ScoreRequest(0, byte_pairs([("q", "p")]))


def application(status: str, *, running: int = 0, message: str = "") -> SimpleNamespace:
    """An application as `serve.status()` describes it."""
    deployment = SimpleNamespace(replica_states={"RUNNING": running} if running else {}, message=message)
    return SimpleNamespace(status=status, message="", deployments={"TeacherReplica": deployment})


@pytest.fixture
def serve_says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let Serve say these things, one each time it is asked; time passes only by being waited for."""

    def script(*states: Any) -> None:
        now = [0.0]
        coming = iter(states)
        last = states[-1]

        def status() -> Any:
            state = next(coming, last)
            return SimpleNamespace(applications={} if state is None else {NAME: state})

        played_time = SimpleNamespace(
            monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
        )
        monkeypatch.setattr(deployment, "time", played_time)
        monkeypatch.setattr(deployment.serve, "status", status)
        monkeypatch.setattr(deployment.serve, "get_deployment_handle", lambda *_, **__: Answering())

    return script


def host(session: DriverSession, journal: Any, clock: Callable[[], float] = lambda: 0.0, **teacher: Any) -> PoolHost:
    spec = tiny_spec(teacher={"replicas": 3, "cpus_per_replica": 0.5} | teacher)
    return PoolHost(
        session,
        "job",
        spec.teacher,
        journal,
        calibrations=Path("/root/calibrations"),
        hang_after_s=HANG_AFTER_S,
        clock=clock,
    )


def test_the_teacher_is_wanted_as_the_spec_says_before_it_is_waited_for(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    serve_says(None, application("DEPLOYING"), application("DEPLOYING", running=1))
    journal = RecordingJournal()
    with host(session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        assert scorer.contract == CONTRACT
        assert [answer.key for answer in scorer.score_all([PAIR], expected_pairs=1)] == [0]
        (wanted,) = TeacherTable(store).wanted()
    assert (wanted.name, wanted.model_dir, wanted.contract) == (NAME, "/teachers/t", CONTRACT.to_dict())
    assert (wanted.replicas, wanted.cpus_per_replica, wanted.tokens_per_batch) == (3, 0.5, 512)
    assert wanted.calibrations_dir == "/root/calibrations"
    assert journal.named("teacher_pool.ready")[0]["running"] == 1, "one replica is enough to begin"


def test_a_pool_that_cannot_be_deployed_says_why(store: Store, session: DriverSession, serve_says: Any) -> None:
    serve_says(application("DEPLOY_FAILED", message="teacher folder 't' has weights 12, contract ab"))
    with (
        pytest.raises(TeacherPoolError, match="contract ab"),
        host(session, RecordingJournal()).host(Path("/teachers/t"), CONTRACT) as scorer,
    ):
        list(scorer.score_all([PAIR], expected_pairs=1))


def test_a_pool_that_waits_for_cpus_is_waited_for_and_says_so(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    """Another job may hold the CPUs for hours: that is no reason to fail, but a reason to say what is going on."""
    waiting = application("DEPLOYING", message="2 replicas wait for 1.0 CPUs")
    serve_says(*[waiting] * 2000, application("RUNNING", running=2))
    journal = RecordingJournal()
    with host(session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        list(scorer.score_all([PAIR], expected_pairs=1))
    said = journal.named("teacher_pool.waiting")
    assert 15 <= len(said) <= 17  # a thousand seconds, a word a minute
    assert "wait for 1.0 CPUs" in said[0]["message"]


def test_a_pool_is_asked_for_once_also_when_that_fails(store: Store, session: DriverSession, serve_says: Any) -> None:
    serve_says(application("DEPLOY_FAILED", message="no such weights"))
    journal = RecordingJournal()
    requests = [ScoreRequest(number, byte_pairs([("q", "p")])) for number in range(20)]
    with (
        pytest.raises(TeacherNotDeployable),
        host(session, journal).host(Path("/teachers/t"), CONTRACT) as scorer,
    ):
        list(scorer.score_all(requests, expected_pairs=20))
    assert len(journal.named("teacher_pool.requested")) == 1


def test_waiting_for_a_pool_can_be_cancelled(store: Store, session: DriverSession, serve_says: Any) -> None:
    serve_says(None)
    journal = RecordingJournal()
    journal.cancelled = True
    with pytest.raises(Cancelled), host(session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        list(scorer.score_all([PAIR], expected_pairs=1))


def test_a_job_whose_scores_are_all_known_asks_for_no_pool(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    """Its requests come empty; starting replicas for them would take CPUs that training could use."""
    serve_says(None)
    journal = RecordingJournal()
    with host(session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        (answer,) = scorer.score_all([ScoreRequest(3, byte_pairs([]))], expected_pairs=0)
    assert (answer.key, len(answer.logits)) == (3, 0)
    assert TeacherTable(store).wanted() == []
    assert journal.events == []


def test_what_is_left_to_do_is_written_down_for_the_autoscaler(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    """With the deadline, which is counted from the first pair that needs the teacher; at the end nothing is left."""
    serve_says(application("RUNNING", running=1))
    auto = {"max_replicas": 4, "finish_within_minutes": 10}
    pool = host(session, RecordingJournal(), lambda: 1000.0, replicas=1, autoscale=auto)
    table = TeacherTable(store)
    seen = []
    with pool.host(Path("/teachers/t"), CONTRACT) as scorer:
        for _ in scorer.score_all([PAIR], expected_pairs=101):
            seen = [(teacher.mode, teacher.min_replicas, teacher.max_replicas) for teacher in table.wanted()]
    assert seen == [("auto", 0, 4)]
    (demand,) = table.demands(NAME)
    assert (demand.backlog_tokens, demand.tokens_per_second, demand.deadline_at) == (0, 40.0, 1600.0)
