"""Lists that are read part by part, through the REST interface, on SQLite and on PostgreSQL."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from api.app import create_app
from sae_service.errors import DatabaseFailure
from sae_service.jobs import tables
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.store import JobStore
from sae_service.settings import Settings

LAST_STEP = (1 << 31) - 1


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[TestClient]:
    url = database.url if database.is_sqlite else database.url.replace("+psycopg", "")
    app = create_app(Settings(data_dir=tmp_path, database_url=url))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def job(api: TestClient, database: Database, spec: dict[str, Any]) -> str:
    """The id of a running job with rows of metrics of two SAEs at four steps, the last of them the last possible one."""
    job_id = api.post("/v1/jobs", json=spec).json()["id"]
    attempt = Attempt(database, job_id, 1)
    assert attempt.claim("worker-1") is not None
    pace = {"total_steps": LAST_STEP, "tokens": 1 << 50, "total_tokens": 1 << 52, "tokens_per_s": 0.5}
    for step in (5, 10, 15, LAST_STEP):
        rows = [{"sae": name, "step": step, "loss": 1.0} for name in ("b", "a")]
        attempt.metrics(rows, pace | {"step": step, "metrics": {"a": {"loss": 1.0}}})
    return job_id


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_of_metrics_lose_no_row_wherever_they_end(api: TestClient, job: str, limit: int) -> None:
    found, query = list[str](), dict[str, Any](limit=limit)
    while True:
        page = api.get(f"/v1/jobs/{job}/metrics", params=query).json()
        found += [row["id"] for row in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert found == [f"{step}:{name}" for step in (5, 10, 15, LAST_STEP) for name in ("a", "b")]


def test_metrics_can_be_those_of_one_sae_and_of_later_steps(api: TestClient, job: str) -> None:
    def ids(**query: Any) -> list[str]:
        return [row["id"] for row in api.get(f"/v1/jobs/{job}/metrics", params=query).json()["data"]]

    assert ids(sae="b", after="5:b") == ["10:b", "15:b", f"{LAST_STEP}:b"]
    assert ids(after_step=10) == ["15:a", "15:b", f"{LAST_STEP}:a", f"{LAST_STEP}:b"]
    assert ids(after_step=10, after="15:a") == ["15:b", f"{LAST_STEP}:a", f"{LAST_STEP}:b"]
    assert ids(after_step=LAST_STEP) == ids(after="9999999999:a") == []


def test_metrics_of_an_sae_that_is_not_in_the_job_are_not_found_and_the_answer_names_those_that_are(
    api: TestClient, job: str
) -> None:
    answer = api.get(f"/v1/jobs/{job}/metrics", params={"sae": "nope"})
    assert (answer.status_code, answer.json()["param"]) == (404, "sae")
    assert "it has a, b" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("metrics?after_step=2147483648", 400), ("metrics?after=5", 400), ("metrics?after=99999999999:a", 400),
     ("metrics?after=-5:a", 400), ("events?after=2147483648", 400), ("events?after=2147483647", 200)],
)  # fmt: skip
def test_numbers_beyond_what_a_job_can_count_are_refused(api: TestClient, job: str, path: str, status: int) -> None:
    assert api.get(f"/v1/jobs/{job}/{path}").status_code == status


@pytest.mark.parametrize("last", [1 << 31, (1 << 62) - 2])
def test_a_stream_is_not_begun_behind_an_event_that_no_job_can_have(api: TestClient, job: str, last: int) -> None:
    answer = api.get(f"/v1/jobs/{job}/events", params={"stream": True}, headers={"Last-Event-ID": str(last)})
    assert answer.status_code == 400


def test_a_stream_whose_events_cannot_be_read_ends(api: TestClient, database: Database, job: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events RENAME TO away"))
    try:
        with api.stream("GET", f"/v1/jobs/{job}/events", params={"stream": True}) as stream:
            assert (stream.status_code, "".join(stream.iter_text())) == (200, "retry: 2000\n\n")
    finally:
        with database.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO events"))


def test_a_list_says_how_far_a_job_is_without_reading_its_spec_or_its_metrics(
    api: TestClient, database: Database, store: JobStore, job: str
) -> None:
    (listed,) = [item for item in api.get("/v1/jobs", params={"limit": 100}).json()["data"] if item["id"] == job]
    progress = listed["progress"]
    assert (progress["step"], progress["tokens"], progress["tokens_per_s"]) == (LAST_STEP, 1 << 50, 0.5)
    assert set(progress) == {"step", "total_steps", "tokens", "total_tokens", "tokens_per_s", "updated_at"}
    assert listed["estimated_finish"] == api.get(f"/v1/jobs/{job}").json()["estimated_finish"]
    ((statement, _),) = statements(database, lambda: store.find(10, status="running"))
    assert "jobs.spec" not in statement
    assert statement.count("jobs.progress") == statement.count("(jobs.progress"), "only parts of it"


def statements(database: Database, ask: Any) -> list[tuple[str, Any]]:
    """What `ask` has the database do."""
    seen: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        seen.append((statement, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    ask()
    sa.event.remove(database.engine, "before_cursor_execute", note)
    return seen


def plan(database: Database, ask: Any) -> str:
    """How the database goes about the last statement of `ask`, were its tables long."""
    statement, parameters = statements(database, ask)[-1]
    with database.engine.connect() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("SET enable_bitmapscan = off")
            connection.exec_driver_sql("SET enable_sort = off")
        explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        return "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))


@pytest.mark.parametrize(
    ("filters", "index"),
    [({}, ""), ({"status": "queued"}, "ix_jobs_status"), ({"metadata": {"team": "a"}}, "label"), ({"after": "JOB"}, "")],
)
def test_a_list_is_read_in_the_order_of_an_index(
    database: Database, store: JobStore, job: str, filters: dict[str, Any], index: str
) -> None:
    filters = {name: job if value == "JOB" else value for name, value in filters.items()}
    found = plan(database, lambda: store.find(20, **filters))
    assert index in found
    for scan in ("SCAN jobs\\n", "TEMP B-TREE FOR ORDER BY", "Seq Scan on jobs", "Sort  "):
        assert scan not in found


@pytest.mark.parametrize("query", [{}, {"sae": "a"}, {"after": (5, "a")}, {"after_step": 5}])
def test_metrics_are_read_in_the_order_of_an_index(database: Database, store: JobStore, job: str, query: dict[str, Any]) -> None:
    found = plan(database, lambda: store.metrics(job, limit=100, **query))
    for scan in ("SCAN metrics", "TEMP B-TREE", "Seq Scan on metrics", "Sort  "):
        assert scan not in found


def test_an_answer_that_will_never_come_is_no_outage(api: TestClient, database: Database, store: JobStore) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE metrics RENAME TO away"))
    try:
        with pytest.raises(DatabaseFailure, match="metrics"):
            store.metrics("job_1")
    finally:
        with database.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO metrics"))


def test_a_process_of_an_older_release_says_that_it_is_not_ready(api: TestClient, database: Database) -> None:
    def set_revision(number: str) -> None:
        with database.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{number}'"))

    assert api.get("/readyz").status_code == 200
    with database.engine.begin() as connection:
        before = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    set_revision("0999")
    try:
        answer = api.get("/readyz")
        assert (answer.status_code, "revision 0999" in answer.json()["detail"]) == (503, True)
    finally:
        set_revision(before)


@pytest.mark.parametrize("version", [3, 99])
def test_a_job_of_a_newer_release_is_shown_and_not_gone_on_from(
    api: TestClient, database: Database, spec: dict[str, Any], version: int
) -> None:
    job_id = api.post("/v1/jobs", json=spec).json()["id"]
    api.post(f"/v1/jobs/{job_id}/cancel")
    table, newer = tables.jobs, {"schema_version": version, "saes": "otherwise"}
    with database.engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.id == job_id).values(spec=newer))
    assert api.get(f"/v1/jobs/{job_id}").json()["spec"] == newer
    assert job_id in [item["id"] for item in api.get("/v1/jobs").json()["data"]]
    answer = api.post(f"/v1/jobs/{job_id}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_version")
    assert f"version {version}" in answer.json()["detail"]
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_processes_say_who_they_are_to_postgresql(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite knows no connections")
    named = Database(database.url, kept=1, name=f"sae-service-{os.getpid()}")
    with named.engine.begin() as connection:
        assert connection.execute(sa.text("SHOW application_name")).scalar_one() == f"sae-service-{os.getpid()}"
    named.engine.dispose()
