"""Which operations a step uses: the sparse ones, and with how many slots, or the dense ones.

A rule and not a trial: a trial's outcome depends on what else the machine does, and the bytes of the weights would depend on
the outcome. Its numbers are measured (tests/benchmarks/results/step.md).
"""

import math

SHARE = 32
"""Sparse operations take less time as long as rows have at most d_sae / SHARE latents on average."""
SMALLEST_D_SAE = 1024
"""Below it a step is too short for the loops of the sparse operations to save anything."""
MULTIPLE, SPARE, STEP = 2, 32, 32
"""Slots for a row with more than the average, in steps."""


def n_slots(n_active: float | int | None, d_sae: int, backend: str, is_even: bool = False) -> int | None:
    """Slots for the latents of a row, or None for the dense operations.

    Args:
        n_active: about how many latents of a row will be active; None if that is left to training.
        backend: JAX's name of the platform. Only the CPU's loops have been measured.
        is_even: whether all rows have as many, so that fewer slots suffice: all that is done in slots takes less time then.
    """
    largest = d_sae / SHARE
    if backend != "cpu" or d_sae < SMALLEST_D_SAE or (n_active or 0) > largest:
        return None
    # Powers of two, so that SAEs with other k share their programs.
    average = min(largest, 2 ** math.ceil(math.log2(n_active))) if is_even and n_active else largest
    wanted = MULTIPLE * average + SPARE
    return int(-(-wanted // STEP) * STEP)
