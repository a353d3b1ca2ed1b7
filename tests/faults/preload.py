"""Small C libraries that are preloaded into the service's processes, compiled when they are needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

INSIDE = Path(__file__).parent / "inside"
ROOT = Path(__file__).parents[2]


def compiled_library(name: str, folder: Path) -> str:
    """The path of `inside/<name>.c`, compiled; skips the test without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    target = folder / f"{name}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, INSIDE / f"{name}.c", "-ldl"], check=True)
    return str(target)


def python_path() -> str:
    """A PYTHONPATH whose `sitecustomize` runs in every process of the service."""
    return f"{INSIDE}:{ROOT}"
