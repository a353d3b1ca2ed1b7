"""What a training process knows and nobody is to read."""

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from workers.credentials import Withholder, credentials

NOWHERE = {"HF_HOME": "/there/is/no/such/folder"}


@pytest.mark.parametrize("name", ["HF_TOKEN", "hf_token", "CLOUD_SECRET", "PGPASSWORD", "SMTP_PASS", "A_KEY", "OPENAI_APIKEY"])
def test_a_name_tells_that_its_value_is_secret(name: str) -> None:
    assert credentials(NOWHERE | {name: "abcdefgh"}) == {"abcdefgh"}


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "GIT_ASKPASS", "MONKEY", "GOOGLE_APPLICATION_CREDENTIALS", "HEADERS"])
def test_another_name_does_not(name: str) -> None:
    assert credentials(NOWHERE | {name: "/a/long/value"}) == set()


def test_a_short_value_may_be_part_of_any_word() -> None:
    assert credentials(NOWHERE | {"HF_TOKEN": "1234567"}) == set()


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("HTTPS_PROXY", "http://me:p%40ssword@proxy:3128", {"p%40ssword", "p@ssword"}),
        ("http_proxy", "me:password@proxy:3128", {"password"}),
        ("PIP_INDEX_URL", "https://a-token-of-mine@host/simple", {"a-token-of-mine"}),
        ("GIT_URL", "ssh://somebody@host/there", set[str]()),
        ("ALL_PROXY", "http://[broken", set[str]()),
        ("NO_PROXY", "localhost,127.0.0.1", set[str]()),
    ],
)
def test_the_password_in_a_url_is_secret(name: str, value: str, found: set[str]) -> None:
    assert credentials(NOWHERE | {name: value}) == found


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_what_headers_carry_is_secret(name: str) -> None:
    value = "api-key=abcdefgh,authorization=Bearer%20ijklmnop=="
    assert credentials(NOWHERE | {name: value}) == {value, "abcdefgh", "ijklmnop=="}


def test_the_token_that_a_login_has_left_is_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_abcdefgh\n")
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("hf_ijklmnop")
    assert credentials({"HF_HOME": str(tmp_path)}) == {"hf_abcdefgh"}
    assert credentials({"HF_TOKEN_PATH": str(tmp_path / "token")}) == {"hf_abcdefgh"}
    assert credentials({"XDG_CACHE_HOME": str(tmp_path)}) == {"hf_ijklmnop"}


@pytest.mark.parametrize("value", ["a/b+c d=e&f", 'two\nlines "quoted"', "pässwörd"])
def test_a_credential_is_withheld_in_a_url_and_in_json_too(value: str) -> None:
    withheld = Withholder([value])
    for written in (value, quote(value, safe=""), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        assert withheld(f"<{written}>") == "<[withheld]>"


def test_the_longest_is_withheld_first_and_nothing_without_any() -> None:
    assert Withholder(["hf_abcdefgh", "hf_abcdefgh_more"])("hf_abcdefgh_more, hf_abcdefgh") == "[withheld], [withheld]"
    assert Withholder()("hf_abcdefgh") == "hf_abcdefgh"


def test_an_environment_may_hold_what_is_no_text() -> None:
    assert Withholder([os.fsdecode(b"no text \xff")])("no text \N{REPLACEMENT CHARACTER}") == "[withheld]"
