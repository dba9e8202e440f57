"""Teachers that scale with their backlog, that outlive jobs, and what each job still wants of them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("teachers") as teachers:
        teachers.add_column(sa.Column("mode", sa.String(16), nullable=False, server_default="fixed"))
        teachers.add_column(sa.Column("min_replicas", sa.Integer(), nullable=False, server_default="0"))
        teachers.add_column(sa.Column("max_replicas", sa.Integer(), nullable=False, server_default="1"))
        teachers.add_column(sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
        teachers.add_column(sa.Column("scaled_by_user", sa.Boolean(), nullable=False, server_default=sa.false()))
        teachers.add_column(sa.Column("scaled_at", sa.Double()))
        teachers.add_column(sa.Column("used_at", sa.Double()))
    op.create_table(
        "teacher_demands",
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", name="fk_demands_job"), primary_key=True),
        sa.Column(
            "teacher_name", sa.String(255), sa.ForeignKey("teachers.name", name="fk_demands_teacher"), nullable=False
        ),
        sa.Column("backlog_tokens", sa.BigInteger(), nullable=False),
        sa.Column("tokens_per_second", sa.Double()),
        sa.Column("deadline_at", sa.Double()),
        sa.Column("updated_at", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("teacher_demands")
    with op.batch_alter_table("teachers") as teachers:
        for name in ("used_at", "scaled_at", "scaled_by_user", "pinned", "max_replicas", "min_replicas", "mode"):
            teachers.drop_column(name)
