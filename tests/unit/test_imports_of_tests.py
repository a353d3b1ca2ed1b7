"""Test modules stand alone: what several of them use is in a helper module, so that one can be moved or cut."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
OF_A_TEST_MODULE = re.compile(
    r"""^\s* (?: from \s+ (?:tests|\.)[\w.]*\btest_\w+ \s+ import
               | from \s+ (?:tests\b|\.)[\w.]* \s+ import \s+ (?:\([\w\s,]*|[\w\ ,]*)\btest_
               | import \s+ [\w.\ ,]*\btests\.[\w.]*\btest_ )""",
    flags=re.MULTILINE | re.VERBOSE,
)
"""Also in code that a test gives to another process, which no reader of imports would see."""


def test_no_test_module_imports_another() -> None:
    importing = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if OF_A_TEST_MODULE.search(path.read_text())}
    assert importing == set()


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("from tests.unit.test_a import b", True),
        ("    from tests.unit.test_a import b", True),
        ("from .test_a import b", True),
        ("from tests.unit import b, test_a", True),
        ("from . import test_a", True),
        ("from tests.unit import (\n    b,\n    test_a,\n)", True),
        ("import tests.unit.test_a", True),
        ("from tests.planted import steps\n\n\ndef test_a() -> None:", False),
        ("from fastapi.testclient import TestClient", False),
        ("from tests.faults import invariants", False),
    ],
)
def test_such_an_import_is_seen_however_it_is_written(code: str, is_one: bool) -> None:
    assert bool(OF_A_TEST_MODULE.search(code)) == is_one
