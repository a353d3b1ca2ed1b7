"""What people and programs say that latents are about."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    """Adds the table of explanations."""
    op.create_table(
        "explanations",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sae", sa.String(64), primary_key=True),
        sa.Column("latent", sa.Integer, primary_key=True),
        sa.Column("author", sa.String(200), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
