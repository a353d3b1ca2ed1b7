"""The service from a program: submit, follow, download. Pure HTTP; imports neither torch nor jax."""

import hashlib
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from sae_service import errors
from sae_service.jobs.records import Checkpoint, Event, Job, JobSummary, MetricsRow, Worker
from sae_service.schema import OWN_FORMAT

DEFAULT_URL = "http://127.0.0.1:8000"
OUTAGE_S = 60.0
METRICS = "metrics.json"
CHUNK = 1 << 20
ERRORS = {
    error.code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.SAEServiceError)
}


class Client:
    """One service. Every method raises the service's own errors, and ServiceUnavailable if it does not answer."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        if api_key and not api_key.isascii():
            raise errors.InvalidSpec("an API key has only ASCII characters", "api_key")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30)

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> Job:
        """Queues a job. With an idempotency key a repetition returns the first job instead of making another."""
        return self._make("/v1/jobs", spec, idempotency_key)

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return _parse(Job, self._ask("GET", f"/v1/jobs/{_quoted(job_id)}"))

    def jobs(self, status: str | None = None, metadata: dict[str, str] | None = None) -> Iterator[JobSummary]:
        """All jobs, newest first, without their specs."""
        query: dict[str, Any] = {"limit": 100} | {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        if status is not None:
            query["status"] = status
        while True:
            page = self._ask("GET", "/v1/jobs", params=query)
            yield from (_parse(JobSummary, item) for item in page["data"])
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    def cancel(self, job_id: str) -> Job:
        """Asks for the job's end; it may still be `cancelling` in the answer."""
        return _parse(Job, self._ask("POST", f"/v1/jobs/{_quoted(job_id)}/cancel"))

    def pause(self, job_id: str) -> Job:
        """Asks for the job to be saved and held; it may still be `pausing` in the answer."""
        return _parse(Job, self._ask("POST", f"/v1/jobs/{_quoted(job_id)}/pause"))

    def resume(self, job_id: str) -> Job:
        """Queues a paused job again."""
        return _parse(Job, self._ask("POST", f"/v1/jobs/{_quoted(job_id)}/resume"))

    def extend(self, job_id: str, tokens: int, idempotency_key: str | None = None) -> Job:
        """A new job that trains the SAEs of a finished one on more: up to `tokens` rows in all."""
        return self._make(f"/v1/jobs/{_quoted(job_id)}/extend", {"tokens": tokens}, idempotency_key)

    def fork(
        self, job_id: str, changes: dict[str, Any], checkpoint: str = "latest", idempotency_key: str | None = None
    ) -> Job:
        """A new job that goes on from a checkpoint with changes, such as {"saes": {"a": {"optimizer": {"lr": 1e-4}}}}."""
        return self._make(f"/v1/jobs/{_quoted(job_id)}/fork", {**changes, "checkpoint": checkpoint}, idempotency_key)

    def retry(self, job_id: str, idempotency_key: str | None = None) -> Job:
        """A new job in place of one that has failed or was cancelled, from its last checkpoint."""
        return self._make(f"/v1/jobs/{_quoted(job_id)}/retry", None, idempotency_key)

    def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, and its files."""
        self._send("DELETE", f"/v1/jobs/{_quoted(job_id)}")

    def workers(self) -> list[Worker]:
        """The workers that are there."""
        return [_parse(Worker, item) for item in self._ask("GET", "/v1/workers")["data"]]

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """The events behind the event `after`, up to 1000."""
        query = {"after": after, "limit": 1000}
        data = self._ask("GET", f"/v1/jobs/{_quoted(job_id)}/events", params=query)["data"]
        return [_parse(Event, item) for item in data]

    def metrics(self, job_id: str) -> Iterator[MetricsRow]:
        """All rows of training metrics, by step."""
        query: dict[str, Any] = {"limit": 10_000}
        while True:
            page = self._ask("GET", f"/v1/jobs/{_quoted(job_id)}/metrics", params=query)
            yield from (_parse(MetricsRow, item) for item in page["data"])
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The checkpoints that can be downloaded, newest first."""
        data = self._ask("GET", f"/v1/jobs/{_quoted(job_id)}/checkpoints")["data"]
        return [_parse(Checkpoint, item | {"key": ""}) for item in data]

    def watch(self, job_id: str, pause_s: float = 1.0) -> Iterator[Job]:
        """The job now, and again whenever it has changed, until it has ended. Rides out short outages."""
        before, answered = None, time.monotonic()
        while True:
            try:
                job = self.job(job_id)
                answered = time.monotonic()
            except errors.ServiceUnavailable:
                if before is None or time.monotonic() - answered > OUTAGE_S:
                    raise
                time.sleep(pause_s)
                continue
            if job != before:
                yield job
            if job.is_terminal:
                return
            before = job
            time.sleep(pause_s)

    def download(
        self, job_id: str, folder: Path, checkpoint: str = "latest", format: str = OWN_FORMAT
    ) -> list[Path]:
        """Writes each SAE of a checkpoint to `folder/<sae name>/`, as the files of a format. Returns their paths.

        Files of the format in which the service stores SAEs (SAELens') that are there already are left alone.
        """
        found = self._ask("GET", f"/v1/jobs/{_quoted(job_id)}/checkpoints/{_quoted(checkpoint)}")
        chosen = _parse(Checkpoint, found | {"key": ""})
        base = f"/v1/jobs/{_quoted(job_id)}/checkpoints/{chosen.id}"
        entries = {entry.path.removeprefix("saes/"): entry for entry in chosen.files if entry.path.startswith("saes/")}
        targets = {path: folder / path for path in entries}
        for path, target in targets.items():
            if not target.resolve().is_relative_to(folder.resolve()):
                raise errors.StorageFailure(f"the service named a file outside {folder}: {path}")
        if format == OWN_FORMAT:
            for path, target in targets.items():
                self._fetch(f"{base}/files/saes/{path}", entries[path].sha256, target)
                if f"{path.split('/')[0]}/{METRICS}" not in entries:
                    # An older one is that of another checkpoint.
                    target.with_name(METRICS).unlink(missing_ok=True)
            return list(targets.values())
        names = dict.fromkeys(path.split("/")[0] for path in entries)
        return [path for name in names for path in self._fetch_as(format, f"{base}/saes/{name}/download", folder / name)]

    def _fetch_as(self, format: str, url: str, folder: Path) -> list[Path]:
        """The files of one SAE in another format, out of the zip in which they come."""
        archive = folder / f"{format}.zip"
        self._fetch(f"{url}?format={quote(format, safe='')}", None, archive)
        try:
            with zipfile.ZipFile(archive) as members:
                if any(Path(name).name != name for name in members.namelist()):
                    raise errors.StorageFailure(f"the service named a file outside {folder}")
                return [Path(members.extract(name, folder)) for name in members.namelist()]
        except (OSError, zipfile.BadZipFile) as error:
            raise errors.StorageFailure(f"cannot write the files of {archive}: {error}") from error
        finally:
            archive.unlink(missing_ok=True)

    def _fetch(self, url: str, sha256: str | None, target: Path) -> None:
        """Writes a file, whole or not at all, unless it is there. Without a hash, the answer's ETag is its hash."""
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
            return
        partial = target.with_name(f"{target.name}.part")
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", url) as response:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                target.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes(CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        except OSError as error:
            raise errors.StorageFailure(f"cannot write {target}: {error}") from error
        if digest.hexdigest() != (sha256 or response.headers.get("ETag", "").strip('"')):
            raise errors.StorageFailure(f"{target.name} arrived damaged; download it again")
        partial.replace(target)

    def _make(self, path: str, body: dict[str, Any] | None, idempotency_key: str | None) -> Job:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _parse(Job, self._ask("POST", path, json=body, headers=headers))

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if not response.is_success:
            raise _error(response)
        return response

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            return self._send(method, path, **arguments).json()
        except ValueError as error:
            raise errors.SAEServiceError(f"what answers at {self.url} is no SAE training service") from error

    def _unavailable(self, error: Exception) -> errors.ServiceUnavailable:
        hint = "Start it with `sae-service serve`, or name another one with --url."
        return errors.ServiceUnavailable(f"{self.url} does not answer: {error}.", hint=hint)


def _parse(record: Any, data: dict[str, Any]) -> Any:
    # A newer service may say more than this client knows.
    try:
        return record.model_validate(data, extra="ignore")
    except ValidationError as error:
        raise errors.SAEServiceError(f"the service's answer is no {record.__name__}: {error}") from error


def _quoted(name: str) -> str:
    """A name as one part of a path."""
    if not name:
        raise errors.NotFound("the id of a job or checkpoint is empty")
    return quote(name, safe="")


def _error(response: httpx.Response) -> errors.SAEServiceError:
    """The service's own error, from its problem document."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    kind = ERRORS.get(body.get("code", ""))
    if kind is None:
        kind = {404: errors.NotFound, 422: errors.InvalidSpec, 400: errors.InvalidSpec}.get(
            response.status_code, errors.ServiceUnavailable if response.status_code >= 502 else errors.SAEServiceError
        )
    listed = [f"{item['pointer']}: {item['detail']}" for item in body.get("errors", [])]
    detail = body.get("detail") or f"the service answered {response.status_code}"
    return kind("; ".join(listed) or detail, None if listed else body.get("param"))
