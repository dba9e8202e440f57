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
from services.driver.hosting import PoolHost
from services.errors import TeacherNotDeployable, TeacherPoolError
from services.store import DriverSession, Store
from services.teacher_pool import client
from services.teacher_pool.control import application_name

CONTRACT = ScoreContract(model_id="m", revision=None, weights_hash="ab", max_length=64, dtype="fp32")
NAME = application_name(CONTRACT.fingerprint)


REPLY = SimpleNamespace(result=lambda timeout_s: (CONTRACT.fingerprint, np.zeros(1, dtype=np.float32)))
ANSWERING = SimpleNamespace(score=SimpleNamespace(remote=lambda pairs: REPLY))
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
        monkeypatch.setattr(client, "time", played_time)
        monkeypatch.setattr(client.serve, "status", status)
        monkeypatch.setattr(client.serve, "get_deployment_handle", lambda *_, **__: ANSWERING)

    return script


def host(store: Store, session: DriverSession, journal: Any) -> PoolHost:
    spec = tiny_spec(teacher={"replicas": 3, "cpus_per_replica": 0.5})
    return PoolHost(store, session, spec.teacher, journal, calibrations=Path("/root/calibrations"))


def test_the_teacher_is_wanted_as_the_spec_says_before_it_is_waited_for(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    serve_says(None, application("DEPLOYING"), application("DEPLOYING", running=1))
    journal = RecordingJournal()
    with host(store, session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        assert scorer.contract == CONTRACT
        assert [key for key, _ in scorer.score_all([PAIR])] == [0]
        (wanted,) = store.teachers_in_use()
    assert (wanted.name, wanted.model_dir, wanted.contract) == (NAME, "/teachers/t", CONTRACT.to_dict())
    assert (wanted.replicas, wanted.cpus_per_replica, wanted.tokens_per_batch) == (3, 0.5, 512)
    assert wanted.calibrations_dir == "/root/calibrations"
    assert journal.named("teacher_pool.ready")[0]["running"] == 1, "one replica is enough to begin"


def test_a_pool_that_cannot_be_deployed_says_why(store: Store, session: DriverSession, serve_says: Any) -> None:
    serve_says(application("DEPLOY_FAILED", message="teacher folder 't' has weights 12, contract ab"))
    with (
        pytest.raises(TeacherPoolError, match="contract ab"),
        host(store, session, RecordingJournal()).host(Path("/teachers/t"), CONTRACT) as scorer,
    ):
        list(scorer.score_all([PAIR]))


def test_a_pool_that_waits_for_cpus_is_waited_for_and_says_so(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    """Another job may hold the CPUs for hours: that is no reason to fail, but a reason to say what is going on."""
    waiting = application("DEPLOYING", message="2 replicas wait for 1.0 CPUs")
    serve_says(*[waiting] * 2000, application("RUNNING", running=2))
    journal = RecordingJournal()
    with host(store, session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        list(scorer.score_all([PAIR]))
    said = journal.named("teacher_pool.waiting")
    assert 15 <= len(said) <= 17  # a thousand seconds, a word a minute
    assert "wait for 1.0 CPUs" in said[0]["message"]


def test_a_pool_is_asked_for_once_also_when_that_fails(store: Store, session: DriverSession, serve_says: Any) -> None:
    serve_says(application("DEPLOY_FAILED", message="no such weights"))
    journal = RecordingJournal()
    requests = [ScoreRequest(number, byte_pairs([("q", "p")])) for number in range(20)]
    with (
        pytest.raises(TeacherNotDeployable),
        host(store, session, journal).host(Path("/teachers/t"), CONTRACT) as scorer,
    ):
        list(scorer.score_all(requests))
    assert len(journal.named("teacher_pool.requested")) == 1


def test_waiting_for_a_pool_can_be_cancelled(store: Store, session: DriverSession, serve_says: Any) -> None:
    serve_says(None)
    journal = RecordingJournal()
    journal.cancelled = True
    with pytest.raises(Cancelled), host(store, session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        list(scorer.score_all([PAIR]))


def test_a_job_whose_scores_are_all_known_asks_for_no_pool(
    store: Store, session: DriverSession, serve_says: Any
) -> None:
    """Its requests come empty; starting replicas for them would take CPUs that training could use."""
    serve_says(None)
    journal = RecordingJournal()
    with host(store, session, journal).host(Path("/teachers/t"), CONTRACT) as scorer:
        ((key, logits),) = scorer.score_all([ScoreRequest(3, byte_pairs([]))])
    assert (key, len(logits)) == (3, 0)
    assert store.teachers_in_use() == []
    assert journal.events == []
