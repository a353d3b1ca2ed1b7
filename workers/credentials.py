"""What a training process knows, may say, and nobody is to read."""

import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from sae_service.settings import is_secret

SHORTEST = 8
"""A shorter value is left where it is: it may be part of many words."""
WITHHELD = "[withheld]"


class Withholder:
    """Takes credentials out of what a training process has said.

    Attributes:
        longest: Characters of the longest text that it takes out.
    """

    def __init__(self, credentials: Collection[str] = ()) -> None:
        # The longest first: one may begin with another.
        forms = sorted({form for value in credentials for form in _forms(value)}, key=len, reverse=True)
        self.longest = len(forms[0]) if forms else 0
        self._pattern = re.compile("|".join(map(re.escape, forms)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """The text without the credentials."""
        return self._pattern.sub(WITHHELD, text)


def _forms(value: str) -> Iterator[str]:
    """How a value may be written: as it is, in a URL, in JSON."""
    # An environment may hold what is no text; a log is read as text all the same.
    text = os.fsencode(value).decode(errors="replace")
    yield from (text, quote(os.fsencode(value), safe=""), json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])


def credentials(environment: dict[str, str]) -> set[str]:
    """The secret values in an environment, and the Hugging Face token that it leads to."""
    found = {_hub_token(environment)}
    for name, value in environment.items():
        found |= {_password(name, value), unquote(_password(name, value))}
        if is_secret(name):
            found |= {value, *_headers(value)} if name.upper().endswith("HEADERS") else {value}
    return {value for value in found if len(value) >= SHORTEST}


def _password(name: str, value: str) -> str:
    """The password in a URL, or its user, which is a token if it stands alone; "" if the value has neither."""
    # The scheme of a proxy may be left out.
    url = f"//{value}" if "://" not in value and name.lower().endswith("_proxy") else value
    try:
        found = urlsplit(url)
    except ValueError:
        return ""
    return found.password or (found.username if found.scheme in ("http", "https", "") else "") or ""


def _headers(value: str) -> Iterator[str]:
    """The last word of each header in `name=value,name=value`: what precedes it says of which kind it is."""
    for header in re.findall("=([^,]+)", value):
        yield from unquote(header).split()[-1:]


def _hub_token(environment: dict[str, str]) -> str:
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    folder = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = Path(environment.get("HF_TOKEN_PATH") or f"{folder}/token")
    with suppress(OSError, ValueError, RuntimeError):
        return path.expanduser().read_text().strip()
    return ""
