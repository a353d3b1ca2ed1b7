"""What `fork --set` takes."""

import pytest

from sae_service.cli.changes import numbers
from sae_service.errors import InvalidSpec

SPEC = {"saes": [{"name": "a.b", "optimizer": {"lr": 1e-3}, "architecture": {"kind": "topk", "k": 32}}]}


def test_a_number_goes_to_the_part_that_has_its_field() -> None:
    assert numbers(["a.b.lr=1e-4", "a.b.k=16"], SPEC) == {"a.b": {"optimizer": {"lr": 1e-4}, "architecture": {"k": 16}}}


@pytest.mark.parametrize("change", ["a.b.lr=nan", "a.b.lr=inf", "a.b.lr=fast", "a.b.lr", "a.b.beta=1", "c.lr=1", "lr=1"])
def test_what_is_no_number_or_no_field_is_refused(change: str) -> None:
    with pytest.raises(InvalidSpec):
        numbers([change], SPEC)
