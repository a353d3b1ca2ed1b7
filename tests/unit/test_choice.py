"""Which steps use the sparse operations."""

import pytest

from sae_service.kernels.choice import n_slots


@pytest.mark.parametrize(
    ("n_active", "d_sae", "backend", "expected"),
    [
        (32, 4096, "cpu", 288),
        (40, 4096, "cpu", 288),
        (None, 4096, "cpu", 288),
        (129, 4096, "cpu", None),
        (8, 512, "cpu", None),
        (32, 4096, "gpu", None),
    ],
)
def test_rows_with_few_of_many_latents_have_slots(n_active: float | None, d_sae: int, backend: str, expected: int | None) -> None:
    assert n_slots(n_active, d_sae, backend) == expected


@pytest.mark.parametrize(("k", "expected"), [(1, 64), (30, 96), (32, 96), (33, 160), (128, 288), (100, 288)])
def test_rows_that_all_have_k_have_fewer(k: float, expected: int) -> None:
    assert n_slots(k, 4096, "cpu", is_even=True) == expected


def test_saes_with_another_k_share_their_program() -> None:
    assert len({n_slots(k, 16384, "cpu") for k in (1, 16, 32, 64, 512)}) == 1
