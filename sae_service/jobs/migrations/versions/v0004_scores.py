"""Scores of checkpoints, by which the best one is found."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Adds checkpoints.score. Those of older releases have none: they were measured at the end only."""
    op.add_column("checkpoints", sa.Column("score", sa.Float))
