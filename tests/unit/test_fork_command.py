"""What `fork --set` and `--tokens` take."""

import pytest
import typer

from sae_service.cli.changes import numbers
from sae_service.cli.common import count
from sae_service.errors import InvalidSpec

OPTIMIZER = {"lr": 1e-3, "lr_warm_up_shape": "linear", "first_moment": "float32", "second_moment": "float32"}
SPEC = {"saes": [{"name": "a.b", "optimizer": OPTIMIZER, "architecture": {"kind": "topk", "d_sae": 64, "k": 32.0}}]}


def test_a_number_goes_to_the_part_that_has_its_field() -> None:
    assert numbers(["a.b.lr=1e-4", "a.b.k=16"], SPEC) == {"a.b": {"optimizer": {"lr": 1e-4}, "architecture": {"k": 16}}}


def test_a_word_stays_one() -> None:
    assert numbers(["a.b.lr_warm_up_shape=cosine"], SPEC) == {"a.b": {"optimizer": {"lr_warm_up_shape": "cosine"}}}


def test_only_what_may_change_is_listed() -> None:
    with pytest.raises(InvalidSpec, match=r"there is no field 'unknown'; there are k, lr, lr_warm_up_shape$"):
        numbers(["a.b.unknown=1"], SPEC)


@pytest.mark.parametrize(
    "change",
    ["a.b.lr=nan", "a.b.lr=1" + 400 * "0", "a.b.lr=inf", "a.b.lr=fast", "a.b.lr", "a.b.beta=1", "c.lr=1", "lr=1"],
)
def test_what_is_no_number_or_no_field_is_refused(change: str) -> None:
    with pytest.raises(InvalidSpec):
        numbers([change], SPEC)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("200000", 200_000), ("200_000", 200_000), ("200k", 200_000), ("1.5M", 1_500_000), ("4B", 4_000_000_000), (65_536, 65_536)],
)
def test_tokens_are_counted_in_thousands_millions_and_billions(text: str | int, tokens: int) -> None:
    assert count(text) == tokens


@pytest.mark.parametrize("text", ["many", 5000 * "9", "", "1.5", "-5", "2m", "k", "1e6x"])
def test_what_is_no_number_of_tokens_is_said_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="200k or 2M"):
        count(text)
