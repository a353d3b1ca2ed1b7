"""What looks and requests cost where a hundred thousand jobs wait and as many have ended.

    python -m tests.benchmarks.database_load [--jobs N] [--metrics N] [--sqlite-jobs N]

Prints a table in Markdown for PostgreSQL, on a server of its own, and for a SQLite file. Half of the jobs' rows wait, half
have ended. Times of the processor are those of the API process and of the database's processes, which have to be on this
machine; wall times say little on a busy one.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.lost_attempts import LostAttempts, keep_looking
from sae_service.jobs.migration import migrate
from sae_service.jobs.presence import Presence
from sae_service.jobs.store import JobStore
from sae_service.spec import JobSpec
from tests.postgres import Postgres

LEASE_S = 3.0
TEMPLATE = {
    "stream": {"model": {"name": "gpt2"}, "dataset": {"path": "some/text"}, "tokens": 1 << 27},
    "saes": [
        {"name": name, "hook_name": "blocks.8.hook_resid_post", "architecture": {"kind": "topk", "d_sae": 24_576}} for name in "ab"
    ],
}
DATA = (
    '{"sae": "a", "step": 100, "tokens": 409600, "tokens_per_s": 41022.7, "loss": 0.123456789, "fvu": 0.123456, "l0": 31.99, '
    '"dead_share": 0.0123, "lr": 0.0003, "mse": 0.2345678, "held": 1.5, "norm": 0.9876}'
)
NUMBERS = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
PER_JOB = 40
"""Rows of metrics of each job that has ended; the first of them has the rest."""


def fill(database: Database, n_jobs: int, n_metrics: int) -> None:
    """Copies one job until there are `n_jobs` of which half wait and half have ended."""
    store = JobStore(database)
    job, _ = store.submit(JobSpec.model_validate(TEMPLATE | {"metadata": {"team": "a"}}).model_dump(mode="json"))
    schema = None if database.is_sqlite else "dbos"
    dbos = "" if database.is_sqlite else "dbos."
    half = n_jobs // 2
    with database.engine.begin() as connection:

        def run(sql: str, count: int = half) -> None:
            connection.exec_driver_sql(sql.replace("NUMBERS", NUMBERS.format(count=count)))

        def copied(table: str, changes: dict[str, str], where: str, schema: str | None = None, prefix: str = "") -> None:
            names = [column["name"] for column in sa.inspect(connection).get_columns(table, schema=schema)]
            quoted = ", ".join(f'"{name}"' for name in names)
            values = ", ".join(changes.get(name, f't."{name}"') for name in names)
            run(f"INSERT INTO {prefix}{table} ({quoted}) NUMBERS SELECT {values} FROM {prefix}{table} t, numbers WHERE {where}")

        number = "CAST(1000000 + n AS VARCHAR)"
        queued, ended = f"'job_q' || {number}", f"'job_e' || {number}"
        mine = f"t.id = '{job.id}'"
        copied("jobs", {"id": queued}, mine)
        copied("jobs", {"id": ended, "status": "'succeeded'", "finished_at": "t.created_at", "collected": "TRUE"}, mine)
        copied("workflow_status", {"workflow_uuid": f"{queued} || '.1'", "created_at": "t.created_at + n"},
               f"t.workflow_uuid = '{job.id}.1'", schema, dbos)  # fmt: skip
        copied("workflow_input", {"workflow_uuid": f"{queued} || '.1'"}, f"t.workflow_uuid = '{job.id}.1'", schema, dbos)
        for name in (queued, ended):
            run(f"INSERT INTO labels (name, value, job_id) NUMBERS SELECT 'team', 'a', {name} FROM numbers")
            run(f"INSERT INTO labels (name, value, job_id) NUMBERS SELECT 'run', {number}, {name} FROM numbers")
            copied("events", {"job_id": name}, f"t.job_id = '{job.id}'")
        steps = f"(SELECT n AS s FROM numbers WHERE n <= {PER_JOB}) steps"
        data = f"'{DATA}'" if database.is_sqlite else f"CAST('{DATA}' AS JSON)"
        metrics = "INSERT INTO metrics (job_id, step, sae, data) NUMBERS"
        run(f"{metrics} SELECT {ended}, 1000000 + s, 'a', {data} FROM numbers, {steps}")
        saes = "(SELECT 'a' AS sae UNION SELECT 'b') saes"
        longest = (n_metrics - half * PER_JOB) // 2
        run(f"{metrics} SELECT 'job_e1000001', n, sae, {data} FROM numbers, {saes}", longest)
    if not database.is_sqlite:
        # As the server does by itself, soon; SQLite never does.
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")


def cpu_s(pids: list[int]) -> dict[int, float]:
    """Seconds of the processor that each process has used; those that have ended are left out, such as PostgreSQL's cleaners."""
    found: dict[int, float] = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def used_s(pids: list[int], before: dict[int, float]) -> float:
    """Seconds of the processor that processes have used since then."""
    return sum(seconds - before[pid] for pid, seconds in cpu_s(pids).items())


def children(pid: int) -> list[int]:
    """A process and those that it has started."""
    found = [pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def repeated(ask: Callable[[int], Any], n: int, api: list[int], server: list[int]) -> str:
    """Cells of a table: milliseconds of the API's and of the database's processor for each request, and the median one."""
    ask(0)
    took: list[float] = []
    before = cpu_s(api), cpu_s(server)
    for number in range(1, n + 1):
        began = time.monotonic()
        ask(number)
        took.append(time.monotonic() - began)
    used = used_s(api, before[0]), used_s(server, before[1])
    cells = [f"{1000 * seconds / n:.1f}" for seconds in used] if server else [f"{1000 * used[0] / n:.1f}", "-"]
    return " | ".join([*cells, f"{1000 * statistics.median(took):.1f}"])


def requests(url: str, folder: Path, server: Callable[[], list[int]]) -> dict[str, str]:
    """What each kind of request costs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"SAE_SERVICE_DATA_DIR": str(folder), "SAE_SERVICE_DATABASE_URL": url}
    api = subprocess.Popen([sys.executable, "-m", "api", "--port", str(port)], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while True:
                try:
                    if client.get("/readyz").is_success:
                        break
                except httpx.HTTPError:
                    time.sleep(0.2)

            def get(path: str) -> Callable[[int], Any]:
                return lambda number: client.get(path.format(1_000_100 + number)).raise_for_status()

            def delete(number: int) -> None:
                client.delete(f"/v1/jobs/job_e{1_000_500 + number}").raise_for_status()

            asked: dict[str, Callable[[int], Any]] = {
                "GET a job": get("/v1/jobs/job_q{}"),
                "list, 20 jobs": get("/v1/jobs?limit=20"),
                "list, 20 jobs that have succeeded": get("/v1/jobs?limit=20&status=succeeded"),
                "list, 20 jobs with a label that all have": get("/v1/jobs?limit=20&metadata[team]=a"),
                "list by a label that two jobs have": get("/v1/jobs?limit=20&metadata[run]={}"),
                "list by a label that no job has": get("/v1/jobs?limit=20&metadata[run]=none"),
                "metrics, the first 1000 rows of the longest job": get("/v1/jobs/job_e1000001/metrics?limit=1000"),
                "metrics, 1000 rows from its middle": get("/v1/jobs/job_e1000001/metrics?limit=1000&after=20000:a"),
                "metrics, 1000 rows of one SAE": get("/v1/jobs/job_e1000001/metrics?limit=1000&sae=b&after_step=20000"),
                "DELETE a job": delete,
            }
            client.get("/v1/jobs")
            return {name: repeated(ask, 100, [api.pid], server()) for name, ask in asked.items()}
    finally:
        api.terminate()
        api.wait(30)


def looks(database: Database, server: list[int]) -> str:
    """What one look for lost attempts costs."""
    lost_attempts = LostAttempts(database, LEASE_S)
    return repeated(lambda _: lost_attempts.look(), 100, [os.getpid()], server)


def until_queued_again(database: Database, job_id: str) -> float:
    """Seconds until the job of a worker that shows no sign of life waits for another one."""
    store, over = JobStore(database), threading.Event()
    Attempt(database, job_id, 1).claim("gone:1")
    began = time.monotonic()
    looking = threading.Thread(target=keep_looking, args=(LostAttempts(database, LEASE_S).look, LEASE_S, over))
    looking.start()
    while store.get(job_id).attempt == 1:
        time.sleep(0.02)
    took = time.monotonic() - began
    over.set()
    looking.join()
    return took


def measured(title: str, url: str, n_jobs: int, n_metrics: int, server: Callable[[], list[int]]) -> None:
    """Fills a database and prints the table of it."""
    database = Database(url)
    migrate(database)
    began = time.monotonic()
    fill(database, n_jobs, n_metrics)
    sys.stderr.write(f"{title}: filled in {time.monotonic() - began:.0f} s\n")
    Presence(database, "here:1", "default", 1, LEASE_S).renew()
    with tempfile.TemporaryDirectory() as folder:
        plain = url.replace("+psycopg", "")
        rows = requests(plain, Path(folder), server)
    rows["a look for lost attempts"] = looks(database, server())
    lines = [f"## {title}", "", f"{n_jobs // 2:,} jobs wait, {n_jobs // 2:,} have ended, {n_metrics:,} rows of metrics.", ""]
    lines += ["| | CPU of the asking process, ms | CPU of the database, ms | wall, ms |", "|---|---|---|---|"]
    lines += [f"| {name} | {cells} |" for name, cells in rows.items()]
    took = until_queued_again(database, "job_q1000777")
    lines += ["", f"The job of a dead worker was queued again after {took / LEASE_S:.2f} leases (of {LEASE_S:.0f} s).", ""]
    print("\n".join(lines))  # noqa: T201
    database.engine.dispose()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--metrics", type=int, default=5_000_000)
    parser.add_argument("--sqlite-jobs", type=int, default=10_000)
    arguments = parser.parse_args()
    postgres = Postgres()
    try:

        def processes() -> list[int]:
            return children(int((postgres.folder / "data" / "postmaster.pid").read_text().split()[0]))

        url = postgres.url.replace("postgresql://", "postgresql+psycopg://")
        measured("PostgreSQL", url, arguments.jobs, arguments.metrics, processes)
    finally:
        postgres.close()
    with tempfile.TemporaryDirectory() as folder:
        n = arguments.sqlite_jobs
        measured("SQLite", f"sqlite:///{folder}/service.db", n, 30 * n, list)


if __name__ == "__main__":
    main()
