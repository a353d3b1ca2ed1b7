"""Jobs that look at what another job has trained: which checkpoint that is, and what it says of model and text."""

from typing import Any

from pydantic import ValidationError

from sae_service.errors import InvalidSpec, NotFound
from sae_service.jobs.records import Checkpoint
from sae_service.jobs.store import JobStore
from sae_service.schema import pointer
from sae_service.spec import JobSpec, LatentsSpec, PromptedSpec, SteeringSpec
from sae_service.spec.stored import read_training

ONLY_READ = {"batch": 1, "buffer_rows": 0, "cache": "off", "cache_dtype": None}
"""The fields of a stream that have no meaning where it is read once, and whole."""


def resolved(spec: Any, jobs: JobStore) -> tuple[Any, Checkpoint | None]:
    """A spec with what it leaves to the job that it names, and the checkpoint of that job; others as they are.

    Raises:
        InvalidSpec: there is no such job for its user, it has not succeeded, or it has no such SAEs.
    """
    if not isinstance(spec, LatentsSpec | PromptedSpec) or spec.job is None:
        return spec, None
    parent, checkpoint = trained(spec.job, jobs)
    known = [sae.name for sae in parent.saes]
    for index, name in enumerate(spec.saes):
        if name not in known:
            raise InvalidSpec(f"the job has no SAE {name!r}; it has {', '.join(known)}", f"/saes/{index}")
    if parent.stream.synthetic is not None:
        raise InvalidSpec("was trained on synthetic activations, so there is no text that its latents could fire on", "/job")
    if isinstance(spec, PromptedSpec):
        return _prompted(spec, parent), checkpoint
    stream = parent.stream.model_dump(mode="json") | ONLY_READ | {"tokens": spec.tokens}
    whole = spec.model_dump(mode="json") | {"saes": list(spec.saes) or known, "stream": stream}
    try:
        return LatentsSpec.model_validate(whole), checkpoint
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec(first["msg"], pointer(first["loc"], whole)) from error


def _of_latent(spec: SteeringSpec, sizes: dict[str, int]) -> tuple[str, ...]:
    """The SAE that the latent of a job is of, by the numbers of latents of those there are. Raises InvalidSpec."""
    if spec.latent is None:
        return ()
    name, *others = spec.saes or sizes
    if others:
        raise InvalidSpec(f"must name the one SAE that the latent is of; the job has {', '.join(sizes)}", "/saes")
    if spec.latent >= sizes[name]:
        raise InvalidSpec(f"the SAE has no latent {spec.latent}; its latents are 0 to {sizes[name] - 1}", "/latent")
    return (name,)


def _prompted(spec: PromptedSpec, parent: JobSpec) -> PromptedSpec:
    """A job on prompts with the SAEs, the model and the exclusions of the job that it names. Raises InvalidSpec."""
    if spec.model is not None and spec.model != parent.stream.model:
        raise InvalidSpec("is that of the job; leave it out", "/model")
    sizes = {sae.name: sae.architecture.d_sae for sae in parent.saes}
    saes = _of_latent(spec, sizes) if isinstance(spec, SteeringSpec) else spec.saes or tuple(sizes)
    exclude = parent.stream.exclude if spec.exclude is None else spec.exclude
    return spec.model_copy(update={"saes": saes, "model": parent.stream.model, "exclude": exclude})


def trained(job_id: str, jobs: JobStore) -> tuple[JobSpec, Checkpoint]:
    """The spec and the final checkpoint of a job that has trained SAEs. Raises InvalidSpec for any other."""
    try:
        job = jobs.get(job_id)
        if job.status != "succeeded":
            raise InvalidSpec(f"job {job_id} is {job.status}; the SAEs of one that has succeeded can be looked at", "/job")
        return read_training(job.spec), jobs.checkpoint(job_id, "latest")
    except NotFound as error:
        raise InvalidSpec(error.message, "/job") from error
    except InvalidSpec as error:
        raise InvalidSpec(error.message, "/job", error.hint) from error
