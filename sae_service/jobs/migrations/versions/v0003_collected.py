"""Ended jobs that have left no files which nobody needs."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Adds jobs.collected, and an index of the jobs that are not."""
    # The default is the database's: a process of an older release adds rows without the column.
    op.add_column("jobs", sa.Column("collected", sa.Boolean, nullable=False, server_default=sa.false()))
    uncollected = ~sa.column("collected", sa.Boolean)
    op.create_index("ix_jobs_uncollected", "jobs", ["status"], sqlite_where=uncollected, postgresql_where=uncollected)
