"""A log that is followed, out of one look at its end after the other."""

from collections.abc import Iterator
from typing import Any

import pytest

from sae_service.errors import NotFound
from sae_service.growing_log import added, follow
from sae_service.jobs.records import Job

LONG = "".join(f"line {number}\n" for number in range(9000))


@pytest.mark.parametrize(
    ("before", "now", "more"),
    [
        ("", "one\n", "one\n"),
        ("one\n", "one\n", ""),
        ("one\n", "one\ntwo\n", "two\n"),
        ("on", "one\n", "e\n"),
        (LONG[:60_000], LONG[5_000:65_000], LONG[60_000:65_000]),
        (LONG[:60_000], LONG[70_000:], LONG[70_000:]),
    ],
    ids=["first", "same", "more", "half a line", "moved on", "nothing in common"],
)
def test_only_what_is_new_is_added(before: str, now: str, more: str) -> None:
    assert added(before, now) == more


class Looks:
    """A job as it is at one look after the other: its status, its attempt, and the logs that there are."""

    def __init__(self, *looks: tuple[str, int, dict[int, str]]) -> None:
        self._looks = iter(looks)
        self._logs: dict[int, str] = {}

    def job(self) -> Job:
        status, attempt, self._logs = next(self._looks)
        none: dict[str, Any] = dict.fromkeys(("status_reason", "started_at", "finished_at", "worker", "error", "progress"))
        return Job.model_validate(none | {
            "id": "job_1", "status": status, "attempt": attempt, "created_at": 0, "metadata": {}, "spec": {},
        })  # fmt: skip

    def log(self, attempt: int | None) -> tuple[int, str]:
        number = max(self._logs, default=0) if attempt is None else attempt
        if number not in self._logs:
            raise NotFound("job job_1 has no log yet")
        return number, self._logs[number]

    def parts(self, attempt: int | None = None, lines: int | None = None) -> Iterator[str]:
        return follow(self.job, self.log, attempt, lines, pause_s=0)


def test_a_log_is_followed_from_before_its_beginning_to_the_end_of_its_job() -> None:
    same = ("running", 1, {1: "a\nb\n"})
    looks = Looks(("queued", 1, {}), same, same, ("succeeded", 1, {1: "a\nb\nc\n"}))
    assert "".join(looks.parts()) == "a\nb\nc\n"


def test_only_its_beginning_is_cut_to_the_last_lines() -> None:
    looks = Looks(("running", 1, {1: "a\nb\n"}), ("succeeded", 1, {1: "a\nb\nc\nd\n"}))
    assert "".join(looks.parts(lines=1)) == "b\nc\nd\n"


def test_one_attempt_follows_the_other_and_nothing_of_the_first_is_missed() -> None:
    first = "a\nlast\n"
    looks = Looks(("running", 1, {1: "a\n"}), ("running", 2, {1: first, 2: "b\n"}), ("failed", 2, {1: first, 2: "b\nc\n"}))
    assert "".join(looks.parts()) == "a\nlast\nb\nc\n"


def test_attempts_that_begin_and_end_between_two_looks_are_not_missed() -> None:
    later = {1: "a\nlast\n", 2: "b\n", 4: "d\n"}
    looks = Looks(("running", 1, {1: "a\n"}), ("running", 4, later), ("failed", 4, later))
    assert "".join(looks.parts()) == "a\nlast\nb\nd\n"


@pytest.mark.parametrize("log", [{}, {1: "a\n"}], ids=["no log", "a log"])
def test_a_log_is_followed_to_the_pause_of_its_job(log: dict[int, str]) -> None:
    assert "".join(Looks(("pausing", 1, log), ("paused", 1, log)).parts()) == log.get(1, "")


def test_one_attempt_is_followed_to_its_own_end() -> None:
    looks = Looks(("running", 1, {1: "a\n"}), ("running", 2, {1: "a\nlast\n"}))
    assert "".join(looks.parts(attempt=1)) == "a\nlast\n"


@pytest.mark.parametrize("look", [("cancelled", 1, {}), ("running", 2, {2: "b\n"})], ids=["no log", "another attempt's"])
def test_what_never_comes_is_an_error(look: tuple[str, int, dict[int, str]]) -> None:
    with pytest.raises(NotFound):
        list(Looks(look).parts(attempt=1))
