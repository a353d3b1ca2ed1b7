"""The page on wide SAEs is written when it is asked for, and not by a look at the options."""

from pathlib import Path

import pytest

from tests.benchmarks import wide


def test_help_is_printed_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "wide.md"
    monkeypatch.setattr(wide, "RESULT", page)
    with pytest.raises(SystemExit) as ended:
        wide.main(["--help"])
    assert ended.value.code == 0
    assert "arithmetic" in capsys.readouterr().out
    assert not page.exists()
    wide.main([])
    assert page.read_text().startswith("# Wide SAEs by arithmetic")
