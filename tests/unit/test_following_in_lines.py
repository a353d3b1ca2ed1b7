"""What `watch` prints where there is no terminal."""

from typing import Any

import pytest

from sae_service import text_tables
from sae_service.jobs.records import Job, Progress

ROW = {"loss": 0.5, "fvu": 0.25, "l0": 16.0}


def job(status: Any, tokens: int = 0, names: tuple[str, ...] = ("a",), reason: str | None = None, row: Any = ROW) -> Job:
    progress = Progress(
        step=tokens // 256, total_steps=40, tokens=tokens, total_tokens=10_000, tokens_per_s=100.0, updated_at=0,
        metrics=dict.fromkeys(names, row),
    )  # fmt: skip
    return Job(
        id="job_1", status=status, status_reason=reason, created_at=0, started_at=0, finished_at=None, attempt=1, worker=None,
        error=None, metadata={}, progress=progress if tokens else None, spec={},
    )  # fmt: skip


def test_a_line_has_the_tokens_the_speed_the_time_left_and_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    changes = [(job("running"), "Loading the model."), (job("running", 4_000), ""), (job("succeeded", 10_000), "")]
    assert text_tables.follow(changes) == changes[-1][0]
    assert capsys.readouterr().out.splitlines() == [
        "job_1",
        "running: Loading the model.",
        "running, 4,000 of 10,000 tokens, 100/s, 0:01:00 left; a: training loss 0.5000, fvu 0.2500, l0 16.0",
        "succeeded, 10,000 of 10,000 tokens; a: training loss 0.5000, fvu 0.2500, l0 16.0",
    ]


def test_a_line_names_the_first_saes_and_counts_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    text_tables.follow([(job("running", 4_000, names=("a", "b", "c", "d", "e")), "")], is_error=True)
    line = capsys.readouterr().err.splitlines()[1]
    assert line.endswith("; c: training loss 0.5000, fvu 0.2500, l0 16.0; and 2 more")


def test_a_job_that_looks_at_latents_shows_what_it_has_seen_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    text_tables.follow([(job("running", 4_000, row={"l0": 16.0, "never_fired_share": 0.25}), "")])
    assert capsys.readouterr().out.splitlines()[1].endswith("left; a: l0 16.0, never_fired_share 0.2500")


def test_a_job_that_waits_says_what_for(capsys: pytest.CaptureFixture[str]) -> None:
    text_tables.follow([(job("queued", reason="waiting_for_worker"), "")])
    assert capsys.readouterr().out.splitlines() == ["job_1", "queued (waiting_for_worker)"]


def test_between_two_tenths_of_a_long_job_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tables, "LINE_EVERY_S", -1)
    text_tables.follow([(job("running", tokens), "") for tokens in (4_000, 4_100, 4_200)])
    assert len(capsys.readouterr().out.splitlines()) == 4
