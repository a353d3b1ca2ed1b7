"""Every error that a user can meet, as one tree.

    SAEServiceError
      InvalidSpec          the request cannot be carried out as written
      DataNotFound         the text cannot be read
        DamagedText        a file of it holds what cannot be read
      ModelNotFound        the language model cannot be read
      OutOfMemory          the device's memory does not suffice
      NonFiniteLoss        a loss became NaN or infinite
      StorageFailure       a file could not be written or read
        DamagedCheckpoint  a stored file does not match its manifest
      NotFound             no such job, checkpoint or file
      Conflict             the job's state does not allow it
      LeaseLost            another worker owns the job now
      WorkerCrashed        the training process ended without a result
      WrongVersion         the database or a checkpoint belongs to another release
      ServiceUnavailable   the service, or its database, does not answer

`code` is stable and is what programs look at; `retryable` is all that a worker looks at.
"""

from typing import ClassVar


class SAEServiceError(Exception):
    """Something went wrong inside the service."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", param: str | None = None, hint: str = "") -> None:
        """Makes an error.

        Args:
            message: what is wrong, where, and what would be right.
            param: JSON pointer of the field in the job's spec that is to blame, such as `/saes/0/hook_name`.
            hint: what to do about it.
        """
        self.message = message or (type(self).__doc__ or "").split("\n")[0]
        self.param = param
        self.hint = hint
        super().__init__(self.message, param, hint)

    def __str__(self) -> str:
        where = f"{self.param}: " if self.param else ""
        return f"{where}{self.message}" + (f" {self.hint}" if self.hint else "")

    def as_dict(self) -> dict[str, str | None]:
        """The form in which an error is stored with a job: code, message, param."""
        text = f"{self.message} {self.hint}".strip()
        return {"code": self.code, "message": text, "param": self.param}


class InvalidSpec(SAEServiceError):
    """The job cannot be carried out as it is written."""

    code = "invalid_spec"


class DataNotFound(SAEServiceError):
    """The text cannot be read."""

    code = "data_not_found"


class DamagedText(DataNotFound):
    """A file of the text holds what cannot be read."""


class ModelNotFound(SAEServiceError):
    """The language model cannot be read."""

    code = "model_not_found"


class OutOfMemory(SAEServiceError):
    """The device's memory does not suffice."""

    code = "out_of_memory"


class NonFiniteLoss(SAEServiceError):
    """A loss became NaN or infinite."""

    code = "nan_loss"


class StorageFailure(SAEServiceError):
    """A file could not be written or read."""

    code = "storage_error"
    retryable = True


class DamagedCheckpoint(StorageFailure):
    """A stored file does not match its manifest."""

    code = "damaged_checkpoint"
    retryable = False


class NotFound(SAEServiceError):
    """There is no such thing."""

    code = "not_found"


class Conflict(SAEServiceError):
    """The job's state does not allow it."""

    code = "conflict"


class LeaseLost(SAEServiceError):
    """Another worker owns the job now."""

    code = "lease_lost"


class WorkerCrashed(SAEServiceError):
    """The training process ended without a result."""

    code = "worker_crashed"
    retryable = True


class WrongVersion(SAEServiceError):
    """The database or a checkpoint belongs to another release."""

    code = "wrong_version"


class ServiceUnavailable(SAEServiceError):
    """The service does not answer."""

    code = "unavailable"
    retryable = True


class Stopped(Exception):
    """Work that was asked to stop has not come to its end."""
