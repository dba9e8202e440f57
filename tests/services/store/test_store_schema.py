"""The migrations are what production runs and the models what the code believes: they must not drift apart."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from services.errors import ServiceError
from services.store import Store
from services.store.models import Base


def test_migrations_build_exactly_the_models(store, database_url):
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_gateways_that_start_together_may_all_migrate(database_url):
    """Two replicas of the gateway start at once on an empty database."""
    stores = [Store(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Store.migrate, stores))
    stores[0].ping()
    for opened in stores:
        opened.close()


def test_an_interrupted_migration_leaves_nothing(database_url, monkeypatch):
    """A crash between two CREATE TABLEs must not leave a half-built schema that no later start can repair."""
    opened = Store(database_url)
    with monkeypatch.context() as patched:
        patched.setattr("alembic.op.create_index", lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            opened.migrate()
    engine = create_engine(database_url)
    assert "jobs" not in inspect(engine).get_table_names()
    engine.dispose()
    opened.migrate()
    opened.ping()
    opened.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://root@localhost/x"])
def test_databases_that_cannot_be_shared_are_refused(url):
    with pytest.raises(ServiceError, match="database_url"):
        Store(url)
