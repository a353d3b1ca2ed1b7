"""Keys and indexes with which no look reads more than it returns; keys of the API, and whose a job is."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005", "0004"
AT_ONCE = 1000


def upgrade() -> None:
    """Adds labels, keys, and to jobs their summary, project, submitter and the job that they go on from."""
    op.add_column("jobs", sa.Column("summary", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("project", sa.String(64), nullable=False, server_default="default"))
    op.add_column("jobs", sa.Column("submitter", sa.String(64)))
    op.add_column("jobs", sa.Column("trace", sa.String(64)))
    op.add_column("jobs", sa.Column("origin_job_id", sa.String(40)))
    op.drop_index("ix_jobs_status", "jobs")
    op.create_index("ix_jobs_status", "jobs", ["status", "id"])
    op.drop_index("ix_jobs_uncollected", "jobs")
    uncollected = sa.column("finished_at").is_not(None) & ~sa.column("collected", sa.Boolean)
    op.create_index("ix_jobs_uncollected", "jobs", ["id"], sqlite_where=uncollected, postgresql_where=uncollected)
    op.create_index("ix_jobs_finished", "jobs", ["finished_at"])
    op.create_index("ix_jobs_project", "jobs", ["project", "id"])
    op.create_index("ix_jobs_project_status", "jobs", ["project", "status", "id"])
    op.create_index("ix_jobs_origin_job_id", "jobs", ["origin_job_id"])
    op.create_table(
        "labels",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(512), primary_key=True),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
    )
    _order_metrics_by_step()
    _fill_in()


def _order_metrics_by_step() -> None:
    op.rename_table("metrics", "metrics_by_sae")
    op.create_table(
        "metrics",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("sae", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step", "sae", name="metrics_by_step"),
    )
    op.execute("INSERT INTO metrics (job_id, step, sae, data) SELECT job_id, step, sae, data FROM metrics_by_sae")
    op.drop_table("metrics_by_sae")
    op.create_index("ix_metrics_sae", "metrics", ["job_id", "sae", "step"])


def _fill_in() -> None:
    """Labels and summaries of the jobs that are there, a thousand at a time."""
    connection, jobs = op.get_bind(), sa.table(
        "jobs", sa.column("id"), sa.column("spec", sa.JSON), sa.column("metadata", sa.JSON), sa.column("origin", sa.JSON),
        sa.column("summary", sa.JSON), sa.column("origin_job_id"),
    )  # fmt: skip
    labels = sa.table("labels", sa.column("name"), sa.column("value"), sa.column("job_id"))
    last = ""
    while rows := connection.execute(sa.select(jobs).where(jobs.c.id > last).order_by(jobs.c.id).limit(AT_ONCE)).all():
        last = rows[-1].id
        for row in rows:
            values = {"summary": _summary(row.spec), "origin_job_id": (row.origin or {}).get("job_id")}
            connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(values))
        named = [{"name": name, "value": value, "job_id": row.id} for row in rows for name, value in row.metadata.items()]
        if named:
            connection.execute(sa.insert(labels), named)


def _summary(spec: dict[str, Any]) -> dict[str, Any]:
    stream, saes = spec.get("stream", {}), spec.get("saes", [])
    return {
        "model": (stream.get("model") or {}).get("name"),
        "dataset": (stream.get("dataset") or {}).get("path"),
        "tokens": stream.get("tokens"),
        "gpus": spec.get("gpus", 1),
        "saes": [
            {
                "name": sae["name"],
                "hook_name": sae["hook_name"],
                "kind": sae["architecture"]["kind"],
                "d_sae": sae["architecture"]["d_sae"],
            }
            for sae in saes
        ],
    }
