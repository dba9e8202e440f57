"""StoreJournal on a real SQLite store: what is written when, and how a run learns that it must stop."""

import threading
from typing import Any

import pytest

from pipelines.errors import Cancelled
from services.driver import journal as journal_module
from services.driver.journal import StoreJournal
from services.errors import StaleDriver
from services.store import DriverSession, ReconcilerSession, Store


class CountingSession(DriverSession):
    """A real session that counts what reaches the database."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.progress_writes = self.cancel_reads = 0
        self.beats = threading.Semaphore(0)

    def set_progress(self, progress: dict[str, Any]) -> None:
        self.progress_writes += 1
        super().set_progress(progress)

    def cancel_requested(self) -> bool:
        self.cancel_reads += 1
        return super().cancel_requested()

    def heartbeat(self) -> None:
        try:
            super().heartbeat()
        finally:
            self.beats.release()


@pytest.fixture
def session(store: Store, job_id: str) -> CountingSession:
    return CountingSession(store, job_id, 1)


@pytest.fixture
def journal(session: CountingSession, clock: Any) -> StoreJournal:
    return StoreJournal(session, clock=clock)


def replace_driver(store: Store, job_id: str) -> None:
    """What happens to a driver that was silent for too long."""
    reconciler = ReconcilerSession(store, "reconciler")
    assert reconciler.requeue(job_id, 1, "no heartbeat")
    assert reconciler.claim_for_start(job_id, 30) == 2


def test_progress_is_written_twice_a_second_however_often_it_comes(
    journal: StoreJournal, session: CountingSession, store: Store, job_id: str, clock: Any
) -> None:
    """Progress comes with every batch; a transaction each would cost more than the batch."""
    for step in range(100):
        journal.progress(step=step, loss=1.0 / (step + 1))
        clock.advance(0.0625)
    assert 11 <= session.progress_writes <= 13, "6.25 seconds"
    journal.flush()
    assert store.get_job(job_id).progress == {"step": 99, "loss": 0.01}, "the last word is never lost"


def test_the_first_progress_is_seen_at_once(journal: StoreJournal, store: Store, job_id: str) -> None:
    journal.progress(pairs_total=10)
    assert store.get_job(job_id).progress == {"pairs_total": 10}


def test_pending_numbers_are_merged(journal: StoreJournal, store: Store, job_id: str) -> None:
    """Scoring and training report different numbers; one must not overwrite the other's."""
    journal.progress(step=1)
    journal.progress(pairs_scored=8)
    journal.progress(step=2)
    journal.flush()
    assert store.get_job(job_id).progress == {"step": 2, "pairs_scored": 8}


def test_a_flush_of_nothing_writes_nothing(journal: StoreJournal, session: CountingSession) -> None:
    journal.flush()
    assert session.progress_writes == 0


def test_a_phase_comes_after_the_progress_before_it(journal: StoreJournal, store: Store, job_id: str) -> None:
    journal.progress(step=1)
    journal.progress(step=9)
    journal.phase("evaluating")
    job = store.get_job(job_id)
    assert (job.phase, job.progress) == ("evaluating", {"step": 9})


def test_events_are_written_at_once_with_their_data(journal: StoreJournal, store: Store, job_id: str) -> None:
    journal.event("scoring.started", "10 chunks", chunks=10)
    event = store.list_events(job_id)[-1]
    assert (event.type, event.message, event.data) == ("scoring.started", "10 chunks", {"chunks": 10})


def test_a_write_that_fails_loses_no_numbers(
    journal: StoreJournal, session: CountingSession, store: Store, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away for longer than the session waits; the next write tells all."""
    with monkeypatch.context() as away:
        away.setattr(session, "set_progress", lambda _: (_ for _ in ()).throw(OSError("away")))
        with pytest.raises(OSError, match="away"):
            journal.progress(step=1)
    journal.flush()
    assert store.get_job(job_id).progress == {"step": 1}


def test_progress_from_many_threads_is_kept(journal: StoreJournal, store: Store, job_id: str, clock: Any) -> None:
    """Scoring reports from its thread, training from the main one."""

    def report(name: str) -> None:
        for number in range(50):
            journal.progress(**{name: number})
            clock.advance(0.1)

    threads = [threading.Thread(target=report, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush()
    assert store.get_job(job_id).progress == {"a": 49, "b": 49, "c": 49}


def test_a_run_that_nobody_stops_goes_on(journal: StoreJournal, session: CountingSession, clock: Any) -> None:
    """And looks at most twice a second: it asks between batches."""
    for _ in range(100):
        journal.check_cancelled()
        clock.advance(0.0625)
    assert 11 <= session.cancel_reads <= 13


def test_a_cancel_stops_the_run_at_its_next_look(journal: StoreJournal, store: Store, job_id: str, clock: Any) -> None:
    journal.check_cancelled()
    store.request_cancel(job_id)
    clock.advance(0.5)
    with pytest.raises(Cancelled):
        journal.check_cancelled()
    with pytest.raises(Cancelled):
        journal.check_cancelled()  # every thread of the run must hear it, also within the half second


def test_a_replaced_driver_stops(journal: StoreJournal, store: Store, job_id: str) -> None:
    replace_driver(store, job_id)
    for step in (
        journal.check_cancelled,
        lambda: journal.progress(step=1),
        lambda: journal.phase("evaluating"),
        lambda: journal.event("x", "y"),
    ):
        with pytest.raises(StaleDriver):
            step()
    job = store.get_job(job_id)
    assert (job.progress, job.phase, job.fencing_token) == ({}, "provisioning", 2), "it changed nothing"


def test_the_heart_beats_while_the_run_is_alive(
    journal: StoreJournal,
    session: CountingSession,
    store: Store,
    job_id: str,
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "_HEARTBEAT_EVERY_S", 0.001)
    with journal.alive():
        assert session.beats.acquire(timeout=30)
        clock.advance(60)
        for _ in range(2):  # one beat may have read the clock before it moved
            assert session.beats.acquire(timeout=30)
        assert store.get_job(job_id).heartbeat_at == clock.now
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_heartbeat_is_seldom_enough_and_often_enough() -> None:
    """Several must fit into the timeout after which a driver is taken for lost (120 s), and each is a transaction."""
    assert 1 <= journal_module._HEARTBEAT_EVERY_S <= 120 / 10


def test_a_failed_heartbeat_ends_the_run_at_its_next_look(
    journal: StoreJournal, session: CountingSession, store: Store, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that beats cannot stop the run; what it learns must reach the thread that works."""
    monkeypatch.setattr(journal_module, "_HEARTBEAT_EVERY_S", 0.001)
    journal.check_cancelled()  # the next look within the half second would not ask the store
    with journal.alive():
        (beating,) = (thread for thread in threading.enumerate() if thread.name == "heartbeat")
        replace_driver(store, job_id)
        beating.join(30)
        assert not beating.is_alive(), "a driver that was replaced must not go on beating"
        with pytest.raises(StaleDriver):
            journal.check_cancelled()


def test_the_heart_stops_when_the_run_fails(journal: StoreJournal) -> None:
    """A driver that still beat after its run failed would never be replaced."""
    with pytest.raises(ValueError, match="broken"), journal.alive():
        raise ValueError("broken")
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
