"""Run by Alembic inside `services.store.migrate`, on the connection that it hands over."""

from alembic import context

from services.store.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
