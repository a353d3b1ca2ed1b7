"""What the answers of a service mean: its records, its errors, and answers that only another server gives."""

from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from sae_service import errors

Record = TypeVar("Record", bound=BaseModel)
BY_CODE = {
    error.code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.SAEServiceError)
}
BY_STATUS = {
    400: errors.InvalidSpec, 403: errors.AccessDenied, 404: errors.NotFound, 409: errors.Conflict, 421: errors.AccessDenied,
    422: errors.InvalidSpec,
}  # fmt: skip
"""The errors whose codes this client does not know."""
BAD_GATEWAY = 502


class Answers:
    """Reads the answers of the service at one address. Raises ServiceUnavailable for those of another server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def content(self, response: httpx.Response) -> Any:
        """The JSON of an answer. Raises the service's own error if it is one."""
        if not response.is_success:
            raise self.error(response)
        try:
            return response.json()
        except ValueError:
            raise self.no_service() from None

    def record(self, kind: type[Record], data: Any) -> Record:
        """A record out of an answer; a newer service may say more of it than this client knows."""
        try:
            return kind.model_validate(data, extra="ignore")
        except ValidationError:
            raise self.no_service() from None

    def part(self, data: Any, name: str) -> Any:
        """A named part of an answer."""
        if not isinstance(data, dict) or name not in data:
            raise self.no_service()
        return data[name]

    def error(self, response: httpx.Response) -> errors.SAEServiceError:
        """The service's own error, from its problem document."""
        status = response.status_code
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("code"), str):
            gateway = errors.ServiceUnavailable(f"the service behind {self._url} does not answer (status {status})")
            return gateway if status >= BAD_GATEWAY else self.no_service()
        if status == 401:
            hint = "Give it with --api-key or SAE_SERVICE_API_KEY, in Python as `api_key`."
            return errors.AccessDenied("the service asks for one of its API keys", hint=hint)
        kind = BY_CODE.get(body["code"]) or BY_STATUS.get(
            status, errors.ServiceUnavailable if status >= BAD_GATEWAY else errors.SAEServiceError
        )
        fields = tuple(_fields(body.get("errors")))
        if len(fields) == 1:
            return kind(fields[0][1], fields[0][0], fields=fields)
        listed = "; ".join(f"{pointer}: {detail}" for pointer, detail in fields)
        return kind(listed or str(body.get("detail")), None if fields else body.get("param"), fields=fields)

    def no_service(self) -> errors.ServiceUnavailable:
        """What to say where another server answers."""
        hint = "Name the service with --url or SAE_SERVICE_URL, in Python as `url`."
        return errors.ServiceUnavailable(
            f"what answers at {self._url} is no SAE training service, or one of another release", hint=hint
        )


def _fields(listed: Any) -> Iterator[tuple[str, str]]:
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and isinstance(item.get("pointer"), str) and isinstance(item.get("detail"), str):
            yield item["pointer"], item["detail"]
