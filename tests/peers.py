"""The environment of the libraries that read and write the same files; their versions of shared packages differ."""

import subprocess
from pathlib import Path

PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"


def has(library: str) -> bool:
    """Whether the environment is there and has the library."""
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", _FIND, library], capture_output=True).returncode == 0


def run(script: str, *arguments: str | Path) -> list[str]:
    """The lines that a script prints there; it must succeed."""
    ended = subprocess.run([PYTHON, "-c", script, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()
