"""Real databases for the store: a SQLite file, and a PostgreSQL server started for the session when it is installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

import psycopg
import pytest
import stamina
from clock import Clock

from services.store import ReconcilerSession, Store

_POSTGRES_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
_schema_numbers = count()


def _as_postgres_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return command
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


@pytest.fixture(scope="session")
def postgres_folder():
    """Folder of the unix socket of a running server."""
    if not _POSTGRES_BINARIES:
        pytest.skip("no PostgreSQL server binaries on this machine")
    binaries = _POSTGRES_BINARIES[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="dd-pg-"))
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"

    def run(*command: str) -> None:
        # pg_ctl's server inherits the streams: a pipe would never end.
        with (folder.parent / f"{folder.name}.out").open("a") as out:
            subprocess.run(_as_postgres_user(list(command)), check=True, stdout=out, stderr=out, cwd="/")

    try:
        run(f"{binaries}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run(f"{binaries}/pg_ctl", "-D", str(data), "-w", "-o", options, "start")
        yield folder
    finally:
        if (data / "postmaster.pid").exists():
            run(f"{binaries}/pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.out").unlink(missing_ok=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """An empty database, deleted with the test's folder; of PostgreSQL a schema: a database is 300 files."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    folder = request.getfixturevalue("postgres_folder")
    name = f"test_{next(_schema_numbers)}"
    with psycopg.connect(host=str(folder), user="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"postgresql+psycopg://postgres@/postgres?host={folder}&options=-csearch_path%3D{name}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(database_url, clock):
    opened = Store(database_url, clock=clock)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def new_job(store):
    """Create a queued job."""
    return lambda name="job", **arguments: store.create_job({"name": name}, **arguments)


@pytest.fixture
def reconciler(store):
    return ReconcilerSession(store, "reconciler-a")


@pytest.fixture(autouse=True)
def no_waiting():
    """Retries happen at once: a test never sleeps."""
    stamina.set_testing(True, attempts=3)
    yield
    stamina.set_testing(False)
