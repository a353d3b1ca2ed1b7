"""Every error that a user can meet, as one tree.

    SAEServiceError
      InvalidSetting       a SAE_SERVICE_* variable is wrong
      InvalidSpec          the request cannot be carried out as written
        BadRequest         a header or a parameter of it is wrong
          UnknownCursor    there is nothing that a page can begin behind
        KeyReused          its Idempotency-Key was used for another one
      DataNotFound         the text cannot be read
        DamagedText        a file of it holds what cannot be read
      ModelNotFound        the language model cannot be read
      OutOfMemory          the device's memory does not suffice
      NonFiniteLoss        a loss became NaN or infinite
      StorageFailure       a file could not be written or read
        DamagedCheckpoint  a stored file does not match its manifest
      AccessDenied         the API key is missing, or does not allow it
        UnknownKey         it is unknown, revoked or expired
      NotFound             no such job, checkpoint or file
      Conflict             the job's state does not allow it
      LeaseLost            another worker owns the job now
      WorkerCrashed        the training process ended without a result
      WrongVersion         the database or a checkpoint belongs to another release
      ServiceUnavailable   the service, or its database, does not answer
      DatabaseFailure      the database answers, and refuses what the service asks of it

`code` is stable and is what programs look at; `retryable` is all that a worker looks at.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


def sentences(message: str, hint: str) -> str:
    """What is wrong, and the hint if there is one, with one full stop between them."""
    return f"{message.removesuffix('.')}. {hint}" if hint else message


class SAEServiceError(Exception):
    """Something went wrong inside the service."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str = "", param: str | None = None, hint: str = "", fields: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Makes an error.

        Args:
            message: what is wrong, where, and what would be right.
            param: JSON pointer of the field in the job's spec that is to blame, such as `/saes/0/hook_name`.
            hint: what to do about it.
            fields: every field that is wrong, where there are several or a service has said so: its pointer, what is wrong.
        """
        self.message = message or (type(self).__doc__ or "").split("\n")[0]
        self.param = param
        self.hint = hint
        self.fields = fields
        super().__init__(self.message, param, hint)

    def __str__(self) -> str:
        where = f"{self.param}: " if self.param else ""
        return f"{where}{sentences(self.message, self.hint)}"

    def as_dict(self) -> dict[str, str | None]:
        """The form in which an error is stored with a job: code, message, param."""
        return {"code": self.code, "message": sentences(self.message, self.hint), "param": self.param}


class InvalidSetting(SAEServiceError):
    """A setting of the service is wrong."""

    code = "invalid_setting"


class InvalidSpec(SAEServiceError):
    """The job cannot be carried out as it is written."""

    code = "invalid_spec"


class BadRequest(InvalidSpec):
    """A header or a parameter of the request is wrong."""

    code = "invalid_request"


class UnknownCursor(BadRequest):
    """There is nothing that a page can begin behind."""

    code = "unknown_cursor"


class KeyReused(InvalidSpec):
    """The Idempotency-Key was used for another request already."""

    code = "idempotency_key_reused"


class DataNotFound(SAEServiceError):
    """The text cannot be read."""

    code = "data_not_found"


class DamagedText(DataNotFound):
    """A file of the text holds what cannot be read."""


class ModelNotFound(SAEServiceError):
    """The language model cannot be read."""

    code = "model_not_found"


NO_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")
"""What the errors of libraries say when memory does not suffice."""


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


class AccessDenied(SAEServiceError):
    """The API key is missing, or does not allow it."""

    code = "access_denied"


class UnknownKey(AccessDenied):
    """The API key is unknown, revoked or expired."""

    code = "unknown_key"


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


class DatabaseFailure(SAEServiceError):
    """The database refuses what the service asks of it."""

    code = "database_error"


def as_stored(error: Exception) -> dict[str, str | None]:
    """Any error in the form in which it is stored with a job; of one that nobody has foreseen, its class and what it says."""
    if isinstance(error, SAEServiceError):
        return error.as_dict()
    return SAEServiceError(f"{type(error).__name__}: {error}").as_dict()


class Stopped(Exception):
    """Work that was asked to stop has not come to its end."""


@contextmanager
def translated(translate: Callable[[Exception], Exception | None]) -> Iterator[None]:
    """Raises what `translate` makes of an error of a library: they raise all kinds for files and models that are broken.

    Our own errors and MemoryError are left as they are, and so is one of which it makes None.
    """
    try:
        yield
    except (SAEServiceError, MemoryError):
        raise
    except Exception as error:  # libraries have no class in common for what is wrong with a file; what is unknown goes on as it is
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


@contextmanager
def located(param: str, place: str = "") -> Iterator[None]:
    """Makes errors of fields below `place` those of the same fields below `param`."""
    try:
        yield
    except SAEServiceError as error:
        if (error.param or "").startswith(place):
            error.param = param + (error.param or "").removeprefix(place)
        raise
