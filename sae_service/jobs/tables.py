"""The tables of the service."""

import sqlalchemy as sa

schema = sa.MetaData()

jobs = sa.Table(
    "jobs",
    schema,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("status_reason", sa.String(40)),
    sa.Column("queue", sa.String(64), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    # What a list shows of the spec.
    sa.Column("summary", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("metadata", sa.JSON, nullable=False),
    # Which attempt owns the job; whoever holds a lower number may not write any more.
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    # Grows with each sign of life of the attempt. A count, not a time: no clock can be wrong.
    sa.Column("heartbeat", sa.BigInteger, nullable=False, default=0),
    sa.Column("worker", sa.String(128)),
    sa.Column("n_events", sa.Integer, nullable=False, default=0),
    sa.Column("progress", sa.JSON),
    sa.Column("error", sa.JSON),
    # Who may see it, and the name of the key that asked for it.
    sa.Column("project", sa.String(64), nullable=False, server_default="default"),
    sa.Column("submitter", sa.String(64)),
    # Where its submission is in a trace.
    sa.Column("trace", sa.String(64)),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("started_at", sa.BigInteger),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("request_key", sa.String(64), unique=True),
    sa.Column("request_hash", sa.String(64)),
    # The checkpoint of another job that this one goes on from, for its users and for its workers.
    sa.Column("origin", sa.JSON),
    sa.Column("origin_key", sa.String(256), index=True),
    sa.Column("origin_job_id", sa.String(40), index=True),
    # Whether it has ended and there are no files of it any more but its checkpoints'.
    sa.Column("collected", sa.Boolean, nullable=False, server_default=sa.false()),
)
# Only of those that have ended and are not: however many have been collected, or wait, the others are found at once.
UNCOLLECTED = jobs.c.finished_at.is_not(None) & ~jobs.c.collected
sa.Index("ix_jobs_uncollected", jobs.c.id, sqlite_where=UNCOLLECTED, postgresql_where=UNCOLLECTED)
sa.Index("ix_jobs_finished", jobs.c.finished_at)
sa.Index("ix_jobs_status", jobs.c.status, jobs.c.id)
sa.Index("ix_jobs_project", jobs.c.project, jobs.c.id)
sa.Index("ix_jobs_project_status", jobs.c.project, jobs.c.status, jobs.c.id)

# What jobs.metadata says, so that jobs are found by it.
labels = sa.Table(
    "labels",
    schema,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(512), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True),
)

events = sa.Table(
    "events",
    schema,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)

metrics = sa.Table(
    "metrics",
    schema,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("sae", sa.String(64), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    # In the order in which pages are read.
    sa.PrimaryKeyConstraint("job_id", "step", "sae", name="metrics_by_step"),
    sa.Index("ix_metrics_sae", "job_id", "sae", "step"),
)

checkpoints = sa.Table(
    "checkpoints",
    schema,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("key", sa.String(256), nullable=False, unique=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("is_final", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("files", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    # What the best one has least of, if it was measured.
    sa.Column("score", sa.Float),
    sa.UniqueConstraint("job_id", "step"),
)

workers = sa.Table(
    "workers",
    schema,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("queue", sa.String(64), nullable=False),
    sa.Column("gpus", sa.Integer, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    # By the database's clock, the only one that all of them share.
    sa.Column("seen_at", sa.BigInteger, nullable=False),
)

# Of the API's keys only their hashes are known.
keys = sa.Table(
    "keys",
    schema,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
)

# What people and programs say that latents are about.
explanations = sa.Table(
    "explanations",
    schema,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sae", sa.String(64), primary_key=True),
    sa.Column("latent", sa.Integer, primary_key=True),
    sa.Column("author", sa.String(200), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
