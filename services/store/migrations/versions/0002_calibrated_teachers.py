"""A teacher's batch size may be left to a calibration, kept in a folder that its replicas share."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("teachers") as teachers:
        teachers.alter_column("tokens_per_batch", existing_type=sa.Integer(), nullable=True)
        teachers.add_column(sa.Column("calibrations_dir", sa.Text()))


def downgrade() -> None:
    op.execute("UPDATE teachers SET tokens_per_batch = 8192 WHERE tokens_per_batch IS NULL")
    with op.batch_alter_table("teachers") as teachers:
        teachers.drop_column("calibrations_dir")
        teachers.alter_column("tokens_per_batch", existing_type=sa.Integer(), nullable=False)
