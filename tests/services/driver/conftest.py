"""A claimed job in a real SQLite store: what a driver finds when it starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina
from clock import Clock

from services.store import DriverSession, ReconcilerSession, Store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[Store]:
    opened = Store(database_url, clock=clock)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def job_id(store: Store) -> str:
    """A job that the reconciler has claimed with token 1."""
    created = store.create_job({"name": "job"}).id
    assert ReconcilerSession(store, "reconciler").claim_for_start(created, 30) == 1
    return created


@pytest.fixture
def session(store: Store, job_id: str) -> DriverSession:
    opened = DriverSession(store, job_id, 1)
    opened.start()
    return opened


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries happen at once: a test never sleeps."""
    stamina.set_testing(True, attempts=3)
    yield
    stamina.set_testing(False)
