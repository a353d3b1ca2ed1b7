"""What pydantic finds wrong with a value, in plain words: each mistake once, the most telling one first."""

import difflib
import json
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

OURS = "invalid"
"""The type of an error that says already what a user is to read."""
FOLLOWS = "default_factory_not_called"
"""A default that another field decides was not looked for: that field is blamed."""
WHOLE, NUMBER, TEXT = "must be a whole number", "must be a number", "must be text"
BOOLEAN, LIST, MAPPING = "must be true or false", "must be a list", "must be a mapping of names to values"
KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), BOOLEAN),
    **dict.fromkeys(("string_type", "string_sub_type"), TEXT),
    **dict.fromkeys(("tuple_type", "list_type", "iterable_type"), LIST),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), MAPPING),
}
"""What a value must be, by the type of the error. What it is instead is added."""
LIMITS = {
    **dict.fromkeys(("missing", "union_tag_not_found"), "is missing"),
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large a number",
    "string_unicode": "must be text; half a character, such as \\ud800 alone, is none",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have {max_length} characters or fewer",
    "too_short": "must have {min_length} or more items",
    "too_long": "must have {max_length} or fewer items",
}
"""Sentences, by the type of the error."""


def retold(error: ValidationError, fields: Collection[str]) -> list[InitErrorDetails]:
    """The errors of one model in plain words, those of the models in it told already.

    Args:
        fields: the names of the model's fields.
    """
    found = [line for line in error.errors(include_url=False) if not _is_echo(line)]
    unknown = [line for line in found if line["type"] == "extra_forbidden"]
    # A field that is misspelled is not missing too.
    misspelled = {(near(str(line["loc"][-1]), fields),) for line in unknown}
    others = [line for line in found if line["type"] != "extra_forbidden"]
    others = [line for line in others if line["type"] != "missing" or line["loc"] not in misspelled]
    return [_retold(line, fields) for line in (*unknown, *others)]


def _is_echo(line: ErrorDetails) -> bool:
    """Whether an error only follows from another one: a list whose items were refused, a default that needs another field."""
    given = line["input"]
    is_long_enough = isinstance(given, list | tuple) and len(given) >= line.get("ctx", {}).get("min_length", 0)
    return line["type"] == FOLLOWS or (line["type"] == "too_short" and is_long_enough)


def _retold(line: ErrorDetails, fields: Collection[str]) -> InitErrorDetails:
    location = line["loc"]
    if line["type"].startswith("union_tag"):
        location = (*location, _unquoted(line.get("ctx", {})["discriminator"])[0])
    error = PydanticCustomError(OURS, sentence(line, fields))  # pyright: ignore[reportArgumentType]
    return InitErrorDetails(type=error, loc=location, input=line["input"])


def sentence(line: ErrorDetails, fields: Collection[str] = ()) -> str:
    """What one error says: what the value must be, and what it is instead."""
    kind, given, context = line["type"], line["input"], line.get("ctx", {})
    if kind == OURS:
        return line["msg"]
    if kind == "extra_forbidden":
        return unknown_name("field", str(line["loc"][-1]), fields)
    if kind == "union_tag_invalid":
        return unknown_name(_unquoted(context["discriminator"])[0], str(context["tag"]), _unquoted(context["expected_tags"]))
    if kind in KINDS:
        return f"{KINDS[kind]}{_such_as(kind, given)}, not {shown(given)}"
    if kind == "string_too_short" and context["min_length"] == 1:
        return "must not be empty"
    numbers = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in context.items()}
    return LIMITS.get(kind, "is not valid").format(**numbers)


def unknown_name(what: str, name: str, known: Collection[str]) -> str:
    """There is no field (kind, ...) of this name; the one that was meant, or all that there are."""
    close = near(name, known)
    listed = ", ".join(sorted(known))
    hint = f"; did you mean {close!r}?" if close else f"; there are {listed}" if known else ""
    return f"there is no {what} {name!r}{hint}"


def near(name: str, known: Collection[str]) -> str | None:
    """The one of the known names that was probably meant."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def shown(value: Any) -> str:
    """A value as its user wrote it, or what kind of value it is."""
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    # Half a character can be sent in no encoding; it stays as JSON writes it.
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:60]}..."


def _such_as(kind: str, given: Any) -> str:
    """The number that was meant by a text such as 1e6, which YAML takes for text."""
    try:
        meant = float(given) if kind == "int_parsing" else 0.5
        return f", such as {int(meant)}" if meant.is_integer() and abs(meant) < 1e15 else ""
    except (TypeError, ValueError, OverflowError):
        return ""


def _unquoted(listed: str) -> list[str]:
    """The names in pydantic's list of quoted ones."""
    return [name.strip().strip("'") for name in listed.split(",")]
