"""A database engine that is safe to share between processes, from a URL.

SQLite: the gateway and each driver open the same file, so it runs in WAL mode (readers never wait for the
writer), waits for a lock instead of failing, syncs every commit (an accepted job survives a power cut), and
writing transactions begin with BEGIN IMMEDIATE: taking the write lock first is what makes read-then-write
atomic, and avoids the SQLITE_BUSY that a read transaction gets at once, without waiting, when it tries to
become a writer. PostgreSQL: connections are tested before use, so that a restarted server costs nothing but
the wait.
"""

import json
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import stamina
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import ConnectionPoolEntry

from services.errors import ServiceError

__all__ = ["WRITING", "make_engine"]

WRITING = {"dualdistill_writing": True}
"""Execution options of a connection or engine whose transactions are going to write."""

_BUSY_TIMEOUT_MS = 30_000
_dumps = partial(json.dumps, allow_nan=False)


def make_engine(url: str) -> Engine:
    """Open (lazily) the database at `url`, `sqlite:///FILE` or `postgresql+psycopg://...`.

    Raises:
        ServiceError: the URL names another database, or SQLite without a file.
    """
    parsed = make_url(url)
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    match parsed.get_backend_name():
        case "postgresql":
            return create_engine(parsed, pool_pre_ping=True, json_serializer=_dumps)
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ServiceError("database_url: SQLite needs a file, other processes cannot see its memory")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, json_serializer=_dumps, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000})
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        case other:
            raise ServiceError(f"database_url: {other!r} is not supported, use sqlite or postgresql")


def _configure_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    # While another process makes this switch, or closes the file as the last one, SQLite says "locked" at once: the
    # busy timeout does not hold for it.
    for attempt in stamina.retry_context(
        on=sqlite3.OperationalError, attempts=None, timeout=_BUSY_TIMEOUT_MS / 1000, wait_initial=0.01, wait_max=0.2
    ):
        with attempt:
            cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writing = any(connection.get_execution_options().get(option) for option in WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
