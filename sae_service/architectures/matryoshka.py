"""Matryoshka BatchTopK: nested prefixes of the latents must each reconstruct alone, so that the first stay general.

Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", arXiv:2503.17547,
section 3. The latents are chosen as in BatchTopK, over all of them together, with decoder rows of any norm. Where public
code differs, this was chosen: the error is the mean over the prefixes, each counted once (SAEBench's averages twice, which
leaves AuxK 5 times the weight), and b_dec alone is not counted as a prefix.
"""

from typing import Annotated, Literal, Self

import jax.numpy as jnp
from pydantic import Field, model_validator

from sae_service.kernels.ops import Ops
from sae_service.numerics import normalized_error
from sae_service.sae.architecture import LossContext, LossOutput, Rows, outcome
from sae_service.sae.auxk import auxk_error
from sae_service.sae.coder import completed
from sae_service.sae.thresholded import ThresholdedCoder, ThresholdedConfig, latents_of_batch, thresholded
from sae_service.schema import refuse


class MatryoshkaConfig(ThresholdedConfig):
    """Nested prefixes, and k active latents per row on average over a batch."""

    kind: Literal["matryoshka"] = "matryoshka"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen
    widths: tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...] = Field(
        default=(), description="Lengths of the prefixes, rising to d_sae. Default: d_sae / 16, / 8, / 4, / 2 and d_sae."
    )

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.widths and (list(self.widths) != sorted({*self.widths, self.d_sae}) or self.widths[0] < 1):
            refuse(("widths",), f"must rise from at least 1 to d_sae ({self.d_sae})", self.widths)
        return self

    def prefixes(self) -> tuple[int, ...]:
        """The lengths of the prefixes."""
        return self.widths or tuple(sorted({max(1, self.d_sae // share) for share in (16, 8, 4, 2, 1)}))


def loss(
    config: MatryoshkaConfig, parameters: ThresholdedCoder, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, ThresholdedCoder]:
    """Mean normalised error of the prefixes + AuxK; the second value has the batch's threshold."""
    coder, encoder, latents, moved = latents_of_batch(config, parameters, rows, ops)
    written = ops.decode_prefixes(latents, coder.W_dec, config.prefixes())
    errors = [normalized_error(rows.y, completed(coder, decoded, rows.x)) for decoded in written]
    y_hat = completed(coder, written[-1], rows.x)
    aux = auxk_error(rows.y - y_hat, latents, encoder, coder.W_dec, context.is_dead, config.k_aux, ops)
    terms = {"error": sum(errors, jnp.zeros(())) / len(errors), "aux": config.aux_coefficient * aux}
    return outcome(terms, rows, y_hat, latents), moved


ARCHITECTURE = thresholded(loss, MatryoshkaConfig(d_sae=64, k=4))
