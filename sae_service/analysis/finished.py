"""Every finished SAE that a caller may see: those that jobs have trained, and those in folders that a job has looked at.

An SAE's id is that of its job and its name, with a point between them. It has no row of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from sae_service.analysis.records import SAE, SAEEntry
from sae_service.errors import NotFound
from sae_service.jobs.records import Checkpoint, JobSummary
from sae_service.jobs.store import JobStore
from sae_service.schema import SAES

JOBS_AT_ONCE = 50


@dataclass(frozen=True)
class Place:
    """Where the files of an SAE's latents are.

    Attributes:
        sae: the job that the SAE is of, and its name in it.
        checkpoint: of the job that has looked at them.
        folder: in it.
    """

    sae: tuple[str, str]
    checkpoint: Checkpoint
    folder: str

    @property
    def key(self) -> str:
        """In the storage."""
        return f"{self.checkpoint.key}/{self.folder}"


@dataclass(frozen=True)
class Library:
    """The SAEs of some jobs."""

    jobs: JobStore

    def entries(self, limit: int, after: str | None = None) -> list[SAEEntry]:
        """Up to `limit` SAEs, the newest jobs first, those behind the SAE `after`. Raises NotFound for `after`."""
        return list(islice(self._after(after), limit))

    def _after(self, after: str | None) -> Iterator[SAEEntry]:
        last = None
        if after is not None:
            job, name = self._job(after)
            last = job.id
            names = [sae.name for sae in job.summary.saes]
            yield from self._entries([job])[names.index(name) + 1 :]
        while found := self.jobs.find(JOBS_AT_ONCE, last, status="succeeded"):
            yield from self._entries([job for job in found if _has_saes(job)])
            last = found[-1].id

    def _entries(self, jobs: list[JobSummary]) -> list[SAEEntry]:
        """The SAEs of some jobs."""
        looks = self._looks([job.id for job in jobs])
        return [entry for job in jobs for entry in _entries(job, looks)]

    def _looks(self, job_ids: list[str]) -> dict[tuple[str, str], str]:
        """By job and name of an SAE the last job that has looked at it, among those that do nothing else."""
        found: dict[tuple[str, str], str] = {}
        for job in self.jobs.successors(job_ids, "latents") if job_ids else ():
            for sae in job.summary.saes:
                if job.origin is not None:
                    found.setdefault((job.origin.job_id, sae.name), job.id)
        return found

    def _job(self, sae_id: str) -> tuple[JobSummary, str]:
        """The job of an SAE, and its name in it. Raises NotFound."""
        job_id, _, name = sae_id.partition(".")
        try:
            job = self.jobs.summary(job_id)
        except NotFound:
            job = None
        if job is None or job.status != "succeeded" or not _has_saes(job) or name not in [sae.name for sae in job.summary.saes]:
            raise NotFound(f"there is no finished SAE {sae_id}; its id is that of its job, a point, and its name", param="sae_id")
        return job, name

    def entry(self, sae_id: str) -> SAEEntry:
        """One SAE as a list shows it. Raises NotFound."""
        job, name = self._job(sae_id)
        return next(entry for entry in self._entries([job]) if entry.name == name)

    def get(self, sae_id: str) -> SAE:
        """One SAE, but for what is said of its latents. Raises NotFound."""
        entry = self.entry(sae_id)
        final = self.jobs.checkpoint(entry.job_id, "latest")
        return SAE(**dict(entry), checkpoint_id=final.id, metrics=final.metrics.get(entry.name, {}), looked_at=None)

    def place(self, sae_id: str) -> Place:
        """Where the files of its latents are. Raises NotFound if nobody has looked at them."""
        entry = self.entry(sae_id)
        if entry.latents_job is None:
            hint = f"Submit a job {{kind: latents, job: {entry.job_id}}}, or `sae-service look {entry.job_id}`."
            raise NotFound(f"nobody has looked at the latents of {sae_id} yet.", "sae_id", hint)
        sae = entry.job_id, entry.name
        return Place(sae, self.jobs.checkpoint(entry.latents_job, "latest"), f"{SAES}{entry.name}")


def _has_saes(job: JobSummary) -> bool:
    """Whether the SAEs that a job names are its own, not another job's."""
    return job.summary.kind == "train" or (job.summary.kind == "latents" and job.origin is None)


def _entries(job: JobSummary, looks: Mapping[tuple[str, str], str]) -> list[SAEEntry]:
    is_training, found = job.summary.kind == "train", list[SAEEntry]()
    for sae in job.summary.saes:
        own = job.id if job.summary.looks_at_latents else None
        found.append(
            SAEEntry(
                id=f"{job.id}.{sae.name}", job_id=job.id, name=sae.name, hook_name=sae.hook_name, kind=sae.kind, d_sae=sae.d_sae,
                model=job.summary.model, dataset=job.summary.dataset, tokens=job.summary.tokens if is_training else None,
                finished_at=job.finished_at, latents_job=looks.get((job.id, sae.name), own),
            )
        )  # fmt: skip
    return found
