"""Jobs that go on from another job's checkpoint, and the workers that are there."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Adds jobs.origin and jobs.origin_key, and makes workers."""
    op.add_column("jobs", sa.Column("origin", sa.JSON))
    op.add_column("jobs", sa.Column("origin_key", sa.String(256)))
    op.create_index("ix_jobs_origin_key", "jobs", ["origin_key"])
    op.create_table(
        "workers",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("gpus", sa.Integer, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )
