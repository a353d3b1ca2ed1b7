"""Which operations a step uses: the sparse ones, and with how many slots, or the dense ones.

A rule and not a trial: a trial's outcome depends on what else the machine does, and the bytes of the weights would depend on
the outcome. Its numbers are measured (tests/benchmarks/results/step.md).
"""

SHARE = 32
"""Sparse operations take less time as long as rows have at most d_sae / SHARE latents on average."""
SMALLEST_D_SAE = 1024
"""Below it a step is too short for the loops of the sparse operations to save anything."""
MULTIPLE, SPARE, STEP = 2, 32, 32
"""Slots for a row with more than the average, in steps, so that SAEs with other k share their programs."""


def n_slots(n_active: float | int | None, d_sae: int, backend: str) -> int | None:
    """Slots for the latents of a row, or None for the dense operations.

    Args:
        n_active: about how many latents of a row will be active; None if that is left to training.
        backend: JAX's name of the platform. Only the CPU's loops have been measured.
    """
    largest = d_sae / SHARE
    if backend != "cpu" or d_sae < SMALLEST_D_SAE or (n_active or 0) > largest:
        return None
    wanted = MULTIPLE * largest + SPARE
    return int(-(-wanted // STEP) * STEP)
