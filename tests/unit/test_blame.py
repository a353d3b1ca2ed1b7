"""What becomes of a library's error."""

import pytest
import torch

from sae_service.activations.blame import blamed
from sae_service.errors import DataNotFound, InvalidSpec, OutOfMemory
from workers.job_process import failure


def raised(error: Exception) -> Exception:
    """What comes out where `error` goes in."""
    try:
        with blamed(InvalidSpec, "the model does not run", "/stream/model/dtype", "Use float32."):
            raise error
    except Exception as found:  # noqa: BLE001  any error is what is asked for
        return found


def test_a_librarys_error_names_the_field_and_is_not_tried_again() -> None:
    told = failure(raised(IndexError("first line\nsecond line")), has_trained=False)
    assert not told["retryable"]
    message = "the model does not run: IndexError: first line. Use float32."
    assert told["error"] == {"code": "invalid_spec", "message": message, "param": "/stream/model/dtype"}


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: 9"])
def test_memory_that_does_not_suffice_for_the_model_is_not_the_specs_other_fields_fault(said: str) -> None:
    error = raised(RuntimeError(said))
    assert isinstance(error, OutOfMemory)
    assert failure(error, has_trained=False) == {"kind": "failed", "error": error.as_dict(), "retryable": False}
    assert "another dtype" in error.hint


@pytest.mark.parametrize("error", [DataNotFound("no text"), MemoryError(), torch.AcceleratorError("unspecified launch failure")])
def test_what_is_known_already_and_what_the_device_has_done_stay_what_they_are(error: Exception) -> None:
    assert raised(error) is error
