"""The log of a training process, which may say anything for as long as it likes."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from sae_service.errors import StorageFailure
from sae_service.growing_log import added
from workers import child as child_module
from workers.child import Child
from workers.child_log import LOG_BYTES, ChildLog
from workers.credentials import Withholder

TALKS = """
import json, sys
sys.stdin.readline()
for number in range(400_000):
    print(f"line {number} of a process that has a lot to say", file=sys.stderr)
    if number % 1000 == 0:
        print(json.dumps({"number": number}), flush=True)
print("the \\x1b[2Jlast word", file=sys.stderr)
"""


def test_a_log_keeps_its_end_and_is_never_much_longer_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = child_module.subprocess.Popen

    def talks(_: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", TALKS], **options)

    monkeypatch.setattr(child_module.subprocess, "Popen", talks)
    log = tmp_path / "job.1.log"
    child = Child({}, ChildLog(log, lambda end: None, Withholder()), {"spec": {}})
    sizes = [log.stat().st_size for _ in child.messages(0.05)]
    child.wait()
    child.close()
    assert max(sizes) < 2 * LOG_BYTES
    assert log.stat().st_size < 2 * LOG_BYTES
    assert child.log.last_words().endswith("the [2Jlast word"), "nothing that a terminal obeys"
    assert "The beginning was deleted" in log.read_text(errors="replace").splitlines()[0]


class Stored:
    """What has been stored of a log, as the last one who asks for it finds it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.ends, self._error = list[bytes](), error

    def __call__(self, end: bytes) -> None:
        self.ends.append(end)
        if self._error is not None:
            raise self._error


def log_of(path: Path, content: bytes, stored: Callable[[bytes], Any], *credentials: str, **more: Any) -> ChildLog:
    path.write_bytes(content)
    return ChildLog(path, stored, Withholder(credentials), **more)


def test_whole_lines_of_its_end_are_stored_64_kib_at_most(tmp_path: Path) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(100_000))
    stored = Stored()
    log_of(tmp_path / "log", lines, stored).store(5, is_growing=False)
    (end,) = stored.ends
    assert (64 << 10) - 20 < len(end) <= 64 << 10
    assert lines.endswith(b"\n" + end)


def test_it_is_stored_again_only_when_there_is_more_of_it(tmp_path: Path) -> None:
    stored = Stored()
    log = log_of(tmp_path / "log", b"one\n", stored)
    log.store(5, is_growing=False)
    log.store(5, is_growing=False)
    with log.open() as file:
        file.write(b"two\n")
    log.store(5, is_growing=False)
    assert stored.ends == [b"one\n", b"one\ntwo\n"]


def test_it_is_stored_at_the_first_word_and_then_every_half_minute(tmp_path: Path) -> None:
    now, stored = [0.0], Stored()
    log = log_of(tmp_path / "log", b"", stored, clock=lambda: now[0])
    for now[0] in range(100):
        log.look()
        if log._storing is not None:
            wait([log._storing])
        with log.open() as file:
            file.write(b"x\n")
    assert [len(end) // 2 for end in stored.ends] == [1, 31, 61, 91]


@pytest.mark.parametrize("error", [StorageFailure("the store is away"), OSError("disk full"), ValueError("nobody foresaw it")])
def test_what_cannot_be_stored_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    log = log_of(tmp_path / "log", b"one\n", Stored(error))
    log.store(5, is_growing=False)
    assert "the log of the attempt cannot be stored" in caplog.text
    assert str(error) in caplog.text


def test_a_storage_that_hangs_is_waited_for_no_longer_than_was_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answered = threading.Event()
    log = log_of(tmp_path / "log", b"one\n", lambda end: answered.wait(60))
    began = time.monotonic()
    log.store(0.2, is_growing=False)
    assert time.monotonic() - began < 5
    assert "the log of the attempt is not stored after 0.2 s" in caplog.text
    answered.set()


def test_a_log_that_is_closed_stores_nothing_but_what_it_is_storing(tmp_path: Path) -> None:
    answered, stored = threading.Event(), Stored()
    begun = threading.Event()

    def slow(end: bytes) -> None:
        begun.set()
        answered.wait(60)
        stored(end)

    log = log_of(tmp_path / "log", b"one\n", slow)
    log.look()
    assert begun.wait(60)
    with log.open() as file:
        file.write(b"two\n")
    log.store(0, is_growing=False)
    log.close()
    answered.set()
    log._executor.shutdown()
    assert stored.ends == [b"one\n"]


def test_no_credential_of_the_process_is_stored_or_quoted(tmp_path: Path) -> None:
    stored = Stored()
    said = b"a request with hf_abcdefgh_more has failed\n" + b"hf_abcdefgh\n" * 10_000
    log = log_of(tmp_path / "log", said, stored, "hf_abcdefgh", "hf_abcdefgh_more")
    log.store(5, is_growing=False)
    assert b"hf_" not in stored.ends[0] + log.last_words().encode()
    assert set(stored.ends[0].splitlines()) == {b"[withheld]"}


def test_a_line_is_stored_once_it_is_whole(tmp_path: Path) -> None:
    stored = Stored()
    log = log_of(tmp_path / "log", b"one\na key: hf_abcdef\xc3", stored, "hf_abcdefgh")
    log.store(5, is_growing=True)
    assert stored.ends == [b"one\n"]
    log.store(5, is_growing=False)
    assert stored.ends[1].startswith(b"one\na key: ")


def test_what_is_followed_is_printed_once_though_a_look_came_in_the_midst_of_a_character(tmp_path: Path) -> None:
    stored = Stored()
    log = log_of(tmp_path / "log", b"one\ncaf\xc3", stored)
    log.store(5, is_growing=True)
    with log.open() as file:
        file.write(b"\xa9\n")
    log.store(5, is_growing=True)
    before, now = (end.decode(errors="replace") for end in stored.ends)
    assert before + added(before, now) == "one\ncafé\n"


@pytest.mark.parametrize("is_growing", [True, False])
@pytest.mark.parametrize("more", range(11))
def test_a_line_that_is_too_long_is_cut_within_no_credential_and_no_character(
    tmp_path: Path, more: int, is_growing: bool
) -> None:
    stored = Stored()
    said = ("hf_é_abcdef".encode() * 20_000)[: (150 << 10) + more]
    log_of(tmp_path / "log", said, stored, "hf_é_abcdef").store(5, is_growing)
    text = stored.ends[0].decode()
    assert 0 < len(stored.ends[0]) <= 64 << 10
    assert "abcdef" not in text
    assert "\N{REPLACEMENT CHARACTER}" not in text[:-1]
    # One that has ended in the midst of a credential has said its beginning.
    assert not is_growing or "hf_" not in text


def test_one_long_line_that_has_ended_is_stored(tmp_path: Path) -> None:
    stored = Stored()
    log_of(tmp_path / "log", b"x" * (100 << 10) + b"\n", stored).store(5, is_growing=True)
    assert len(stored.ends[0]) == 64 << 10
