"""The operations on latents that a loss may use, whoever carries them out."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array

from sae_service.kernels.latents import Latents
from sae_service.kernels.selection import Number, keep_largest


@dataclass(frozen=True)
class Ops:
    """Implementations are equal in value and gradient, as far as the order of sums allows.

    Attributes:
        encode: (x, W_enc, b_enc) -> Latents: those above 0.
        encode_topk: (x, W_enc, b_enc, k) -> Latents: the k largest of each row, if positive.
        encode_topk_of_batch: (x, W_enc, b_enc, k) -> (Latents, smallest): the k largest a row on average over the batch,
            and the smallest of them, 0 if none is positive.
        encode_above: (x, W_enc, b_enc, threshold, bandwidth) -> Latents: those above their thresholds, and beside them, not
            active, those in the window of width `bandwidth` around their thresholds.
        decode: (latents, W_dec) -> what they write.
        decode_prefixes: (latents, W_dec, widths) -> what the first latents of each width write, [widths, batch, d_write].
        keep_largest: (acts, k) -> acts with all but the k largest of each row set to 0.
        can_gather: whether some of the latents can be taken together: not where they lie on several devices.
    """

    encode: Callable[[Array, Array, Array], Latents]
    encode_topk: Callable[[Array, Array, Array, Number], Latents]
    encode_topk_of_batch: Callable[[Array, Array, Array, Number], tuple[Latents, Array]]
    encode_above: Callable[[Array, Array, Array, Array, Array], Latents]
    decode: Callable[[Latents, Array], Array]
    decode_prefixes: Callable[[Latents, Array, tuple[int, ...]], Array]
    keep_largest: Callable[[Array, Number], Array] = keep_largest
    can_gather: bool = True
