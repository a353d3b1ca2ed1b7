"""The log of a training process, which may say anything for as long as it likes."""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from sae_service.errors import StorageFailure
from workers import child as child_module
from workers.child import Child
from workers.child_log import LOG_BYTES, ChildLog

TALKS = """
import json, sys
sys.stdin.readline()
for number in range(400_000):
    print(f"line {number} of a process that has a lot to say", file=sys.stderr)
    if number % 1000 == 0:
        print(json.dumps({"number": number}), flush=True)
print("the last word", file=sys.stderr)
"""


def test_a_log_keeps_its_end_and_is_never_much_longer_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = child_module.subprocess.Popen

    def talks(_: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", TALKS], **options)

    monkeypatch.setattr(child_module.subprocess, "Popen", talks)
    log = tmp_path / "job.1.log"
    child = Child({}, ChildLog(log, lambda end: None), {"spec": {}})
    sizes = [log.stat().st_size for _ in child.messages(0.05)]
    child.wait()
    child.close()
    assert max(sizes) < 2 * LOG_BYTES
    assert log.stat().st_size < 2 * LOG_BYTES
    assert child.log.last_words().endswith("the last word")
    assert "The beginning was deleted" in log.read_text(errors="replace").splitlines()[0]


class Kept:
    """What has been kept of a log, as the last one who asks for it finds it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.ends, self._error = list[bytes](), error

    def __call__(self, end: bytes) -> None:
        self.ends.append(end)
        if self._error is not None:
            raise self._error


def log_of(path: Path, content: bytes, kept: Callable[[bytes], Any], **more: Any) -> ChildLog:
    path.write_bytes(content)
    return ChildLog(path, kept, **more)


def test_whole_lines_of_its_end_are_kept_64_kib_at_most(tmp_path: Path) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(100_000))
    kept = Kept()
    log_of(tmp_path / "log", lines, kept).keep(5)
    (end,) = kept.ends
    assert (64 << 10) - 20 < len(end) <= 64 << 10
    assert lines.endswith(b"\n" + end)


def test_it_is_kept_again_only_when_there_is_more_of_it(tmp_path: Path) -> None:
    kept = Kept()
    log = log_of(tmp_path / "log", b"one\n", kept)
    log.keep(5)
    log.keep(5)
    with log.open() as file:
        file.write(b"two\n")
    log.keep(5)
    assert kept.ends == [b"one\n", b"one\ntwo\n"]


def test_it_is_kept_at_the_first_word_and_then_every_half_minute(tmp_path: Path) -> None:
    now, kept = [0.0], Kept()
    log = log_of(tmp_path / "log", b"", kept, clock=lambda: now[0])
    for now[0] in range(100):
        log.look()
        if log._keeping is not None:
            wait([log._keeping])
        with log.open() as file:
            file.write(b"x\n")
    assert [len(end) // 2 for end in kept.ends] == [1, 31, 61, 91]


@pytest.mark.parametrize("error", [StorageFailure("the store is away"), OSError("disk full")])
def test_what_cannot_be_kept_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    log = log_of(tmp_path / "log", b"one\n", Kept(error))
    log.keep(5)
    assert "the log of the attempt cannot be kept" in caplog.text


def test_a_store_that_hangs_is_waited_for_no_longer_than_was_said(tmp_path: Path) -> None:
    answered = threading.Event()
    log = log_of(tmp_path / "log", b"one\n", lambda end: answered.wait(60))
    began = time.monotonic()
    log.keep(0.2)
    assert time.monotonic() - began < 5
    answered.set()


def test_no_credential_of_the_process_is_kept_or_quoted(tmp_path: Path) -> None:
    kept = Kept()
    said = b"a request with hf_abcdefgh_more has failed\n" + b"hf_abcdefgh\n" * 10_000
    log = log_of(tmp_path / "log", said, kept, credentials={"hf_abcdefgh", "hf_abcdefgh_more", os.fsdecode(b"no text \xff")})
    log.keep(5)
    assert b"hf_" not in kept.ends[0] + log.last_words().encode()
    assert set(kept.ends[0].splitlines()) == {b"[withheld]"}
