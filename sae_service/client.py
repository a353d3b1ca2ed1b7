"""The service from a program: submit, follow, download. Pure HTTP; imports neither torch nor jax."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from sae_service import downloads, errors, growing_log
from sae_service.answers import Answers
from sae_service.jobs.records import Checkpoint, Event, Job, JobSummary, MetricsRow, Worker
from sae_service.latents_client import LatentsCalls
from sae_service.prompted_client import PromptedCalls
from sae_service.schema import DEFAULT_PORT, OWN_FORMAT, SAES
from sae_service.statistics_client import StatisticsCalls
from sae_service.storage.cached_stream import CachedStream

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
OUTAGE_S = 60.0
CHUNK = 1 << 20
Answer = TypeVar("Answer")


class Client(LatentsCalls, StatisticsCalls, PromptedCalls):
    """One service. Every method raises the service's own errors, and ServiceUnavailable if it does not answer."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {_sendable('api_key', api_key)}"} if api_key else {}
        self.url = url if "://" in url else f"http://{url}"
        self._answers = Answers(self.url)
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        except httpx.InvalidURL as error:
            raise errors.InvalidSpec(f"{url!r} is no address of a service: {error}", "url") from error

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> Job:
        """Queues a job. With an idempotency key a repetition returns the first job instead of making another."""
        return self._make("/v1/jobs", spec, idempotency_key)

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._job("GET", f"/v1/jobs/{_quoted(job_id)}")

    def jobs(
        self, status: str | None = None, metadata: dict[str, str] | None = None, limit: int | None = None
    ) -> Iterator[JobSummary]:
        """The jobs, newest first: all of them, or the first `limit`, without their specs."""
        query: dict[str, Any] = {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        query |= {"limit": min(limit or 100, 100)} | ({} if status is None else {"status": status})
        found = islice(self._pages("/v1/jobs", query), limit)
        return (self._answers.record(JobSummary, item) for item in found)

    def cancel(self, job_id: str) -> Job:
        """Asks for the job's end; it may still be `cancelling` in the answer."""
        return self._job("POST", f"/v1/jobs/{_quoted(job_id)}/cancel")

    def pause(self, job_id: str) -> Job:
        """Asks for the job to be saved and held; it may still be `pausing` in the answer."""
        return self._job("POST", f"/v1/jobs/{_quoted(job_id)}/pause")

    def resume(self, job_id: str) -> Job:
        """Queues a paused job again."""
        return self._job("POST", f"/v1/jobs/{_quoted(job_id)}/resume")

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
        answer = self._send("DELETE", f"/v1/jobs/{_quoted(job_id)}")
        if not answer.is_success:
            raise self._answers.error(answer)

    def workers(self) -> list[Worker]:
        """The workers that are there."""
        return [self._answers.record(Worker, item) for item in self._pages("/v1/workers", {})]

    def cached_streams(self) -> list[CachedStream]:
        """The streams whose rows are in the activation cache, newest first."""
        return [self._answers.record(CachedStream, item) for item in self._pages("/v1/cache", {"limit": 100})]

    def delete_cached_stream(self, stream_id: str) -> None:
        """Deletes the rows of a stream from the activation cache."""
        answer = self._send("DELETE", f"/v1/cache/{_quoted(stream_id)}")
        if not answer.is_success:
            raise self._answers.error(answer)

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """All events behind the event `after`, oldest first."""
        found = self._pages(f"/v1/jobs/{_quoted(job_id)}/events", {"limit": 1000, "after": after})
        return [self._answers.record(Event, item) for item in found]

    def metrics(self, job_id: str) -> Iterator[MetricsRow]:
        """All rows of training metrics, by step."""
        found = self._pages(f"/v1/jobs/{_quoted(job_id)}/metrics", {"limit": 10_000})
        return (self._answers.record(MetricsRow, item) for item in found)

    def logs(self, job_id: str, attempt: int | None = None, lines: int | None = None) -> str:
        """The end of an attempt's log, 64 KiB at most; by default of the last attempt that has one.

        Args:
            lines: only the last so many.

        Raises:
            NotFound: there is no such job, or no log yet.
        """
        return self._log(job_id, attempt, lines)[1]

    def follow_logs(
        self, job_id: str, attempt: int | None = None, lines: int | None = None, pause_s: float = 10.0
    ) -> Iterator[str]:
        """The end of a log, then what is added to it, until the job has ended or is paused; by default one attempt after another.

        Args:
            lines: begin with only the last so many.
        """
        job, log = partial(self._patiently, self.job, job_id), partial(self._patiently, self._log, job_id)
        return growing_log.follow(job, log, attempt, lines, pause_s)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The checkpoints that can be downloaded, newest first."""
        return [self._checkpoint(item) for item in self._pages(f"/v1/jobs/{_quoted(job_id)}/checkpoints", {})]

    def watch(self, job_id: str, pause_s: float = 1.0) -> Iterator[Job]:
        """The job now, and again whenever it has changed, until it has ended. Rides out short outages."""
        before = None
        for job, _ in self.follow(job_id, pause_s):
            if job != before:
                yield job
            before = job

    def follow(self, job_id: str, pause_s: float = 1.0) -> Iterator[tuple[Job, str]]:
        """As `watch`; beside the job what it does before its first step, or "", and both again when that has changed."""
        before, answered, event = None, time.monotonic(), None
        while True:
            try:
                job = self.job(job_id)
                if job.status == "running" and job.progress is None:
                    *_, event = event, *self.events(job_id, event.id if event else 0)
                answered = time.monotonic()
            except errors.ServiceUnavailable:
                if before is None or time.monotonic() - answered > OUTAGE_S:
                    raise
                time.sleep(pause_s)
                continue
            now = job, event.message if event and job.status == "running" and job.progress is None else ""
            if now != before:
                yield now
            if job.is_terminal:
                return
            before = now
            time.sleep(pause_s)

    def download(
        self, job_id: str, folder: Path | str, checkpoint: str = "latest", format: str = OWN_FORMAT
    ) -> list[Path]:
        """Writes each SAE of a checkpoint to `folder/<sae name>/`, as the files of a format. Returns their paths.

        Files that are there already are left alone. Raises InvalidSpec, and writes nothing, if another file is in the place
        of one: that of another checkpoint, SAE or format.
        """
        folder = Path(folder)
        chosen = self._checkpoint(self._ask("GET", f"/v1/jobs/{_quoted(job_id)}/checkpoints/{_quoted(checkpoint)}"))
        base = f"/v1/jobs/{_quoted(job_id)}/checkpoints/{chosen.id}"
        hashes = {entry.path.removeprefix(SAES): entry.sha256 for entry in chosen.files if entry.path.startswith(SAES)}
        if format == OWN_FORMAT:
            for path, target in downloads.missing(folder, hashes).items():
                self._fetch(f"{base}/files/{SAES}{path}", hashes[path], target)
            return [folder / path for path in hashes]
        names = dict.fromkeys(path.split("/")[0] for path in hashes)
        with tempfile.TemporaryDirectory() as scratch:
            archives = {name: Path(scratch) / f"{index}.zip" for index, name in enumerate(names)}
            for name, archive in archives.items():
                self._fetch(f"{base}/saes/{name}/download?format={quote(format, safe='')}", None, archive)
            return downloads.unpacked(folder, archives)

    def _fetch(self, url: str, sha256: str | None, target: Path) -> None:
        """Writes a file, whole or not at all. Without a hash, the answer's ETag is its hash, if it has one."""
        partial = target.with_name(f"{target.name}.part")
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", url) as response:
                if not response.is_success:
                    response.read()
                    raise self._answers.error(response)
                target.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes(CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        except OSError as error:
            raise errors.StorageFailure(f"cannot write {target}: {error}") from error
        wanted = sha256 or response.headers.get("ETag", "").strip('"')
        if wanted and digest.hexdigest() != wanted:
            raise errors.StorageFailure(f"{target.name} arrived damaged; download it again")
        partial.replace(target)

    def _make(self, path: str, body: dict[str, Any] | None, idempotency_key: str | None) -> Job:
        headers = {"Idempotency-Key": _sendable("idempotency_key", idempotency_key)} if idempotency_key else {}
        return self._job("POST", path, json=body, headers=headers)

    def _log(self, job_id: str, attempt: int | None, lines: int | None = None) -> tuple[int, str]:
        """Whose log it is, and its end."""
        asked = {"attempt": attempt, "lines": lines}
        query = {name: value for name, value in asked.items() if value is not None}
        answer = self._send("GET", f"/v1/jobs/{_quoted(job_id)}/logs", params=query)
        if not answer.is_success:
            raise self._answers.error(answer)
        number = answer.headers.get("X-Attempt", "")
        if not number.isdecimal():
            raise self._answers.no_service()
        return int(number), answer.text

    def _patiently(self, ask: Callable[..., Answer], *arguments: Any) -> Answer:
        """What is asked for, if need be after a short outage."""
        began = time.monotonic()
        while True:
            try:
                return ask(*arguments)
            except errors.ServiceUnavailable:
                if time.monotonic() - began > OUTAGE_S:
                    raise
                time.sleep(1)

    def _job(self, method: str, path: str, **arguments: Any) -> Job:
        return self._answers.record(Job, self._ask(method, path, **arguments))

    def _checkpoint(self, data: Any) -> Checkpoint:
        # Where it is stored is the service's own business.
        return self._answers.record(Checkpoint, data | {"key": ""} if isinstance(data, dict) else data)

    def _pages(self, path: str, query: dict[str, Any]) -> Iterator[Any]:
        """Every item of a list, one page after the other."""
        while True:
            page = self._ask("GET", path, params=query)
            yield from self._answers.part(page, "data")
            if not page.get("has_more"):
                return
            query = query | {"after": self._answers.part(page, "last_id")}

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        return self._answers.content(self._send(method, path, **arguments))

    def _unavailable(self, error: Exception) -> errors.ServiceUnavailable:
        hint = "Start it with `sae-service serve`, or name another one with --url or SAE_SERVICE_URL."
        return errors.ServiceUnavailable(f"{self.url} does not answer: {error}", hint=hint)


def _sendable(field: str, value: str) -> str:
    """The value of a header. Raises InvalidSpec if it cannot be one, without showing it: it may be a secret."""
    if not (value.isascii() and value.isprintable()):
        raise errors.InvalidSpec("must be printable ASCII characters in one line", field)
    return value


def _quoted(name: str) -> str:
    """A name as one part of a path."""
    if not name:
        raise errors.NotFound("the id of a job or checkpoint is empty")
    if "/" in name or name in (".", ".."):
        raise errors.NotFound(f"{name!r} is no job or checkpoint: jobs have ids, checkpoints an id, latest or best")
    return quote(name, safe="")
