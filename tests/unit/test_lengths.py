"""No function of the packages, and no file of them or of the tests, is too long to be read at once."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("sae_service", "api", "workers") for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 40
# A migration is a list of tables from top to bottom, and is never changed again.
FREE = {"sae_service/jobs/migrations/versions/v0001_tables.py: upgrade"}
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


def functions(text: str) -> Iterator[tuple[str, int]]:
    """The functions of a file with their lines of code: those that are not blank, a comment or of the docstring."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = code & lines_of(node)
            if ast.get_docstring(node, clean=False) is not None:
                lines -= lines_of(node.body[0])
            yield node.name, len(lines)


def lines_of(node: ast.stmt) -> set[int]:
    assert node.end_lineno is not None
    return set(range(node.lineno, node.end_lineno + 1))


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in FILES + TESTS}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_longer_than_40_lines_of_code() -> None:
    too_long = {
        f"{path.relative_to(ROOT).as_posix()}: {name}"
        for path in FILES
        for name, length in functions(path.read_text())
        if length > LONGEST_FUNCTION
    }
    assert too_long == FREE


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("def a(): pass", 1),
        ("def a():\n    pass\n\n    # why\n    pass\n\npass", 3),
        ('def a():\n    """One.\n\n    Two.\n    """\n    return """\n\n    three"""', 4),
        ("@b\nasync def a(\n    c,\n):\n    def d():\n        pass", 5),
    ],
)
def test_only_lines_of_code_are_counted(text: str, length: int) -> None:
    assert dict(functions(text))["a"] == length
