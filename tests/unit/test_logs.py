"""What the service's processes write into their logs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def logged(code: str, form: str, *arguments: str) -> list[str]:
    """The lines that a process writes to its log."""
    configured = f"import logging; from sae_service import logs; logs.configure({form!r}, 'info')\n"
    command = [sys.executable, "-c", configured + code, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr.splitlines()


ABOUT_A_JOB = """
with logs.about(request_id="req_1"), logs.about(job="job_1", attempt=2):
    logging.getLogger("workers").info("it %s", "begins")
logging.getLogger("workers").info("it is over")
"""


def test_a_plain_line_says_when_and_which_request_job_and_attempt_it_is_about() -> None:
    first, second = logged(ABOUT_A_JOB, "plain")
    assert first.endswith("Z INFO workers: it begins [request_id=req_1 job=job_1 attempt=2]")
    assert second.endswith("Z INFO workers: it is over")


def test_a_json_line_has_the_same_as_fields() -> None:
    first, second = map(json.loads, logged(ABOUT_A_JOB, "json"))
    assert first.pop("time").endswith("Z")
    about = {"request_id": "req_1", "job": "job_1", "attempt": 2}
    assert first == {"level": "info", "logger": "workers", "message": "it begins"} | about
    assert about.keys().isdisjoint(second)


def test_an_error_with_its_traceback_is_one_json_line() -> None:
    (line,) = logged("try: 1 / 0\nexcept ZeroDivisionError: logging.getLogger('api').exception('it broke')", "json")
    assert "ZeroDivisionError" in json.loads(line)["exception"]


@pytest.mark.parametrize("level", ["info", "warning"])
def test_libraries_are_heard_only_when_they_warn(level: str) -> None:
    assert len(logged(f"logging.getLogger('a_library').{level}('hello')", "plain")) == (level == "warning")


def test_tables_are_made_and_text_is_read_without_a_word(tmp_path: Path) -> None:
    code = """
import sys
from sae_service.jobs.database import Database
from sae_service.jobs.migration import migrate
migrate(Database("sqlite:///" + sys.argv[1]))
import datasets
"""
    assert logged(code, "plain", str(tmp_path / "service.db")) == []
