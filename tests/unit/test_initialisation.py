"""How SAEs begin: nothing that the first steps would have to undo."""

import jax
import jax.numpy as jnp
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.kernels.selection import keep_largest
from sae_service.numerics import row_norms, spread, squared_error
from sae_service.sae.coder import SCALING_ROWS, fitted_to_largest, random_coder
from sae_service.sae.sites import at
from tests.planted import same

D_IN, D_SAE = 32, 256
SITES = at("hook", D_IN)
ROWS = jax.random.normal(jax.random.key(1), (2000, D_IN)) + 3.0


@pytest.mark.parametrize("k", [1, 8, 100, 2.5])
def test_the_k_largest_latents_of_a_row_reconstruct_its_length(k: float) -> None:
    coder = fitted_to_largest(random_coder(jax.random.key(0), SITES, D_SAE), same(ROWS), k)
    rows = spread(ROWS, SCALING_ROWS)
    acts = jax.nn.relu((rows - coder.b_dec) @ coder.W_enc + coder.b_enc)
    reconstructed = keep_largest(acts, k) @ coder.W_dec
    assert float(jnp.mean(row_norms(reconstructed))) == pytest.approx(float(jnp.mean(row_norms(rows - coder.b_dec))), rel=1e-3)


def test_rows_that_are_all_the_same_leave_the_encoder_as_it_is() -> None:
    coder = random_coder(jax.random.key(0), SITES, D_SAE)
    fitted = fitted_to_largest(coder, same(jnp.zeros((10, D_IN))), 4)
    assert jnp.array_equal(fitted.W_enc, coder.W_enc)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "jumprelu_tanh", "topk"])
def test_a_new_sae_reconstructs_no_worse_than_nothing_at_all(kind: str) -> None:
    """Through a whole transpose of many unit rows, the half that fires at first would reconstruct d_sae / (2 d_in) times x."""
    rows = ROWS - jnp.mean(ROWS, axis=0)
    architecture = ARCHITECTURES[kind]
    config = type(architecture.example).model_validate(architecture.example.model_dump() | {"d_sae": D_SAE})
    parameters = architecture.fit_to_rows(config, architecture.init(config, SITES, jax.random.key(0)), same(rows))
    sae = architecture.export(config, parameters)
    nothing = squared_error(rows, jnp.zeros_like(rows))
    assert squared_error(rows, sae.decode(sae.encode(rows))) <= nothing
