"""The file in which a user writes a job, and where in it a field stands."""

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_service import errors

MOST_PARTS = 100_000


class JobFile:
    """A job as YAML or JSON. The file is read when it is first asked for something.

    Args:
        source: its path; - reads standard input.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._name = "standard input" if source == "-" else source

    @cached_property
    def _text(self) -> str:
        try:
            return sys.stdin.read() if self._source == "-" else Path(self._source).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.InvalidSpec(f"cannot read {self._source}: {error}") from error

    def spec(self) -> dict[str, Any]:
        """The job in the file, paths made absolute. Raises InvalidSpec."""
        import yaml

        try:
            node = yaml.compose(self._text, yaml.SafeLoader)
            self._check_nodes(node)
            spec = yaml.safe_load(self._text)
        except yaml.YAMLError as error:
            raise errors.InvalidSpec(f"cannot read {self._source}: {error}") from error
        if not isinstance(spec, dict):
            raise errors.InvalidSpec(f"{self._name} is no job: it must be a mapping with the keys stream and saes")
        try:
            _check_json(spec)
        except RecursionError:
            raise errors.InvalidSpec(f"{self._name} is nested too deeply, or a part of it contains itself") from None
        self._make_absolute(spec)
        return spec

    def _check_nodes(self, root: Any) -> None:
        """Raises InvalidSpec for a key that stands twice, and for a file whose aliases make many parts of few lines."""
        import yaml

        n_parts, left = 0, [root]
        while left and n_parts <= MOST_PARTS:
            node, n_parts = left.pop(), n_parts + 1
            if isinstance(node, yaml.SequenceNode):
                left += node.value
            elif isinstance(node, yaml.MappingNode):
                seen = set[str]()
                for key, value in node.value:
                    if isinstance(key, yaml.ScalarNode) and key.value in seen:
                        where = f"{self._name}, line {key.start_mark.line + 1}"
                        raise errors.InvalidSpec(f"{where}: {key.value} stands twice; leave one of the two out")
                    seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
                    left.append(value)
        if n_parts > MOST_PARTS:
            raise errors.InvalidSpec(f"{self._name} has more than {MOST_PARTS} parts, or a part of it contains itself")

    def _make_absolute(self, spec: dict[str, Any]) -> None:
        folder = Path.cwd() if self._source == "-" else Path(self._source).expanduser().resolve().parent
        stream, saes, folders = spec.get("stream"), spec.get("saes"), spec.get("folders")
        parts = [(stream, "model", "name"), (stream, "dataset", "path"), (spec, "dataset", "path")]
        parts += [(sae, "initial", "path") for sae in (saes if isinstance(saes, list) else [])]
        parts += [({"folder": one}, "folder", "path") for one in (folders if isinstance(folders, list) else [])]
        for parent, part, key in parts:
            named = parent.get(part) if isinstance(parent, dict) else None
            value = named.get(key) if isinstance(named, dict) else None
            if isinstance(named, dict) and isinstance(value, str) and value.startswith((".", "~")):
                named[key] = str((folder / Path(value).expanduser()).resolve())

    def place(self, pointer: str) -> str:
        """Where a field stands, such as `job.yaml, line 12: saes[0].architecture.k`."""
        parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        path = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).removeprefix(".")
        return f"{self._name}, line {self._line(parts)}: {path}"

    def _line(self, parts: list[str]) -> int:
        """The line of a field, or of the part of the job that lacks it."""
        import yaml

        node: Any = yaml.compose(self._text, yaml.SafeLoader)
        line = node.start_mark.line
        for part in parts:
            if isinstance(node, yaml.MappingNode):
                entry = next(((key, value) for key, value in node.value if key.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
                entry = (node.value[int(part)],) * 2
            else:
                entry = None
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        return line + 1


def _check_json(value: Any, pointer: str = "") -> None:
    """Raises InvalidSpec for what YAML knows but JSON does not: dates, NaN, bytes."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_json(name, f"{pointer}/{name}")
            _check_json(item, f"{pointer}/{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{pointer}/{index}")
    else:
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            hint = "Put it in quotes if it is meant as text."
            raise errors.InvalidSpec(f"{value!r} cannot be part of a job", pointer, hint) from None
