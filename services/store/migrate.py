"""Bring a database to the newest tables, with Alembic, from inside any process.

Everything happens in one transaction that nobody else can enter (an advisory lock on PostgreSQL, the write
lock on SQLite), so a gateway that starts beside another one finds the work done, and a crash in the middle
leaves nothing.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

__all__ = ["migrate"]

_ADVISORY_LOCK = 0x6475616C  # "dual"; any constant that other programs in the same database do not use


def migrate(engine: Engine) -> None:
    """Upgrade to head. `engine` must begin writing transactions (see `services.store.engine.WRITING`)."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
