"""The command line against a real gateway on a real socket and a real SQLite store; only the cluster is missing."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from click.testing import Result
from tiny import spec_data
from typer.testing import CliRunner

from services.cli.app import app
from services.gateway.app import create_app
from services.settings import Settings
from services.store import Store

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    """Run `dualdistill` with these arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec_data()), encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def gateway(store: Store, tmp_path: Path) -> Iterator[str]:
    """Its URL. Nothing takes the jobs: the tests are the reconciler and the driver."""
    (tmp_path / "data-root").mkdir()
    settings = Settings(
        root=tmp_path / "root",
        database_url=f"sqlite:///{tmp_path / 'store.db'}",
        data_roots=(tmp_path / "data-root",),
        ray_dashboard_url="http://127.0.0.1:9",
        ray_token=None,
        heartbeat_timeout_s=120,
        cancel_grace_s=20,
        max_attempts=3,
        max_running_jobs=1,
        driver_cpus=1,
        driver_gpus=0,
    )
    with served(create_app(settings, reconcile=False)) as url:
        yield url


class served:  # noqa: N801 - a context manager
    """An ASGI app on a free port of 127.0.0.1, in a thread."""

    def __init__(self, asgi: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture
def something_else() -> Iterator[str]:
    """The URL of a server that is no gateway: it answers everything with a page."""

    async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"<h1>It works!</h1>"})

    with served(page) as url:
        yield url


@pytest.fixture
def nobody() -> str:
    """A URL at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
