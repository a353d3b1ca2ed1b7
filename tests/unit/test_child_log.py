"""The log of a training process, which may say anything for as long as it likes."""

import sys
from pathlib import Path
from typing import Any

import pytest

from workers import child as child_module
from workers.child import LOG_BYTES, Child

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
    child = Child({}, log, {"spec": {}})
    sizes = [log.stat().st_size for _ in child.messages(0.05)]
    child.wait()
    child.close()
    assert max(sizes) < 2 * LOG_BYTES
    assert log.stat().st_size < 2 * LOG_BYTES
    assert child.last_words().endswith("the last word")
    assert "The beginning was deleted" in log.read_text(errors="replace").splitlines()[0]
