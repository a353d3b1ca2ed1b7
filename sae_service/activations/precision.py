"""The precision of the language model's matrix products."""

import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from sae_service.schema import Dtype

MATMUL = {"tensorfloat32": "high"}
"""torch's word for it; for all others it is "highest", which rounds nothing."""
EPS = {"float32": 2**-23, "tensorfloat32": 2**-10, "float16": 2**-10, "bfloat16": 2**-7}
"""The distance of 1 from the next number."""

_LOCK = threading.RLock()


@contextmanager
def products_in(precision: str, held_in: Dtype, device: str) -> Iterator[None]:
    """Forward passes in it have their products in this precision, and sums in float32.

    torch has one setting for the whole process: passes on other threads wait, and it is set back afterwards.

    Args:
        precision: bfloat16 rounds the factors of weights that are not held in it already.
        held_in: what the weights are held in.
    """
    matmul = torch.backends.cuda.matmul
    with _LOCK, torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16" and held_in != "bfloat16"):
        before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
        torch.set_float32_matmul_precision(MATMUL.get(precision, "highest"))
        matmul.allow_bf16_reduced_precision_reduction = False
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            matmul.allow_bf16_reduced_precision_reduction = before[1]


def settings(precision: str, held_in: Dtype, device: str) -> dict[str, Any]:
    """What torch is set to in a forward pass."""
    with products_in(precision, held_in, device):
        matmul = torch.backends.cuda.matmul
        return {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cuda.matmul.allow_tf32": matmul.allow_tf32,
            "cuda.matmul.fp32_precision": matmul.fp32_precision,
            "autocast": "bfloat16" if torch.is_autocast_enabled(device) else None,
        }


def cpu_name() -> str:
    """The maker and the model of the CPU: libraries have kernels of their own for some, which round otherwise."""
    with suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        if found := re.findall(r"^(?:vendor_id|cpu family|model|model name|CPU [a-z]+)\s*: (.*)$", cpuinfo, re.MULTILINE):
            return ", ".join(found)
    return platform.processor() or platform.machine()
