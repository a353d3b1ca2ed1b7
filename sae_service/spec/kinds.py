"""The kinds of jobs, by name: a spec is of the kind that it names, and trains SAEs if it names none."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from sae_service.plain_words import unknown_name
from sae_service.schema import refuse
from sae_service.spec.attribution import AttributionSpec
from sae_service.spec.job import JobSpec
from sae_service.spec.latents import LatentsSpec
from sae_service.spec.prompted import PromptedSpec
from sae_service.spec.statistics import StatisticsSpec
from sae_service.spec.steering import SteeringSpec
from sae_service.spec.stream import ModelSpec

DEFAULT_KIND = "train"
SPECS: dict[str, Any] = {
    "train": JobSpec,
    "latents": LatentsSpec,
    "statistics": StatisticsSpec,
    "steering": SteeringSpec,
    "attribution": AttributionSpec,
}
"""What a job of each kind says. What is looked at before it is queued is in `preflight`, and what it does in `kinds`."""


def kind_of(spec: Any) -> Any:
    """The kind of a spec, parsed or not."""
    return spec.get("kind", DEFAULT_KIND) if isinstance(spec, dict) else getattr(spec, "kind", DEFAULT_KIND)


def _check_kind(spec: Any) -> Any:
    kind = kind_of(spec)
    if not isinstance(kind, str) or kind not in SPECS:
        refuse(("kind",), unknown_name("kind of job", str(kind), SPECS), kind)
    return spec


AnySpec = Annotated[
    Annotated[JobSpec, Tag("train")]
    | Annotated[LatentsSpec, Tag("latents")]
    | Annotated[StatisticsSpec, Tag("statistics")]
    | Annotated[SteeringSpec, Tag("steering")]
    | Annotated[AttributionSpec, Tag("attribution")],
    Discriminator(kind_of),
    BeforeValidator(_check_kind),
]
"""A job of any kind."""


def model_of(spec: Any) -> ModelSpec | None:
    """The language model that a job reads, or None if it reads none."""
    return spec.model if isinstance(spec, PromptedSpec) else spec.stream.model


def wants_cache(spec: Any) -> bool:
    """Whether a job reads cached activations, or caches them."""
    return not isinstance(spec, PromptedSpec) and spec.stream.cache != "off"
