"""BatchTopK: a batch keeps the k largest latents per row on average; one threshold takes their place later.

Source: Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", arXiv:2412.06410, section 3. There the threshold is the
average over batches of the smallest latent that was kept; here it leaves k of them a row over many rows at once
(DECISIONS 44). Unlike in the published code, `b_enc` is used in the encoder, rows are not standardised one by one, a latent
is dead after tokens, not batches, and decoder rows are not held at norm 1: a latent is multiplied by its row's norm
instead, which is the same SAE, learned faster (DECISIONS 22).
"""

from typing import Literal

from sae_service.kernels.ops import Ops
from sae_service.numerics import normalized_error
from sae_service.sae.architecture import LossContext, LossOutput, Rows, outcome
from sae_service.sae.auxk import auxk_error
from sae_service.sae.coder import completed
from sae_service.sae.thresholded import ThresholdedCoder, ThresholdedConfig, latents_of_batch, thresholded


class BatchTopKConfig(ThresholdedConfig):
    """k active latents per row, on average over a batch."""

    kind: Literal["batchtopk"] = "batchtopk"  # pyright: ignore[reportIncompatibleVariableOverride]  frozen


def loss(
    config: BatchTopKConfig, parameters: ThresholdedCoder, rows: Rows, context: LossContext, ops: Ops
) -> tuple[LossOutput, ThresholdedCoder]:
    """Normalised error + AuxK; the second value has the batch's threshold."""
    coder, encoder, latents, moved = latents_of_batch(config, parameters, rows, ops)
    y_hat = completed(coder, ops.decode(latents, coder.W_dec), rows.x)
    aux = auxk_error(rows.y - y_hat, latents, encoder, coder.W_dec, context.is_dead, config.k_aux, ops)
    terms = {"error": normalized_error(rows.y, y_hat), "aux": config.aux_coefficient * aux}
    return outcome(terms, rows, y_hat, latents), moved


ARCHITECTURE = thresholded(loss, BatchTopKConfig(d_sae=64, k=4))
