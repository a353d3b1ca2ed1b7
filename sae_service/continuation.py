"""The spec of a job that goes on from another job's checkpoint: what may change, and what must stay as it was."""

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from sae_service.errors import InvalidSpec
from sae_service.schema import Frozen, Moments, Name, pointer, refuse_long
from sae_service.spec import CheckpointSpec, EvaluationSpec, JobSpec, Labels, LatentsPart, SAESpec, Shard

PARTS = ("checkpoints", "evaluation", "latents")
"""Whose fields can be changed one by one."""


class SAEChanges(Frozen):
    """New numbers for one SAE."""

    optimizer: dict[str, Any] = Field(default={}, description="Fields of the optimizer, such as lr.")
    architecture: dict[str, Any] = Field(
        default={}, description="Numbers of the architecture, such as l1_coefficient; kind and d_sae stay."
    )
    shard: Shard | None = Field(default=None, description="How the SAE is split over the job's gpus from here on.")


class Changes(Frozen):
    """What a job does otherwise than the one that it goes on from; what is left out stays."""

    tokens: int | None = Field(
        default=None, gt=0, lt=1 << 53, description="Rows in all, those of the checkpoint included; schedules are stretched to it."
    )
    saes: dict[Name, SAEChanges] = Field(
        default={}, description="New numbers, by the SAE's name.", json_schema_extra={"additionalProperties": False}
    )
    checkpoints: CheckpointSpec | None = None
    evaluation: EvaluationSpec | None = None
    latents: LatentsPart | None = Field(default=None, description="How latents are looked at, once the SAEs are trained.")
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] | None = None
    queue: Name | None = None
    gpus: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="GPUs of the new job; a checkpoint does not depend on how many wrote it."
    )
    metadata: Labels | None = Field(default=None, description="The new job's labels, in place of the old one's.")

    @model_validator(mode="before")
    @classmethod
    def _check_lengths(cls, data: Any) -> Any:
        refuse_long(data)
        return data


def continued(parent: JobSpec, changes: Changes, tokens_done: int, is_final: bool = False) -> JobSpec:
    """The parent's spec with the changes, and with every default that the parent's length decided kept as it was.

    Args:
        tokens_done: the tokens of the checkpoint to go on from.
        is_final: it has been evaluated too; of any other one the evaluation alone may be left to do.

    Raises:
        InvalidSpec: nothing would be left to do, an SAE is unknown, or a change is one that its state cannot follow.
    """
    tokens = changes.tokens or parent.stream.tokens
    least = tokens_done + (parent.stream.batch if is_final else 0)
    if tokens < least:
        step = f" and a step is {parent.stream.batch}" if is_final else ""
        raise InvalidSpec(f"must be at least {least}: the checkpoint is at {tokens_done} tokens{step}", param="/tokens")
    unknown = sorted(set(changes.saes) - {sae.name for sae in parent.saes})
    if unknown:
        names = ", ".join(sae.name for sae in parent.saes)
        raise InvalidSpec(f"there is no SAE {unknown[0]}; the job has {names}", param=f"/saes/{unknown[0]}")
    given = changes.model_dump(exclude_none=True, exclude_unset=True, include=set(Changes.model_fields) - {"tokens", "saes"})
    stream = {"tokens": tokens, "buffer_rows": parent.stream.steps_per_fill * parent.stream.batch}
    whole = parent.model_dump(mode="json")
    for name, value in given.items():
        whole[name] = (whole[name] or {}) | value if name in PARTS else value
    whole["stream"] |= stream
    whole["saes"] = [_changed(parent, sae, changes.saes.get(sae.name, SAEChanges())) for sae in parent.saes]
    try:
        return JobSpec.model_validate(whole)
    except ValidationError as error:
        location, message = error.errors()[0]["loc"], error.errors()[0]["msg"]
        # The changes name the SAEs that the spec counts.
        by_name = {sae["name"]: sae for sae in whole["saes"]}
        named = [parent.saes[part].name if location[0] == "saes" and isinstance(part, int) else part for part in location[:2]]
        raise InvalidSpec(message, param=pointer([*named, *location[2:]], whole | {"saes": by_name})) from error


def _changed(parent: JobSpec, sae: SAESpec, changes: SAEChanges) -> dict[str, Any]:
    numbers = sae.architecture.model_dump() | changes.architecture
    try:
        config = type(sae.architecture).model_validate(numbers)
    except ValidationError as error:
        place = pointer(error.errors()[0]["loc"], numbers)
        raise InvalidSpec(error.errors()[0]["msg"], param=f"/saes/{sae.name}/architecture{place}") from error
    if config.structure() != sae.architecture.structure():
        before, after = sae.architecture.structure(), config.structure()
        changed = next(name for name in type(config).model_fields if getattr(before, name) != getattr(after, name))
        raise InvalidSpec(_cannot_change(sae), param=f"/saes/{sae.name}/architecture/{changed}")
    for name in Moments._fields:
        if changes.optimizer.get(name, getattr(sae.optimizer, name)) != getattr(sae.optimizer, name):
            raise InvalidSpec(_cannot_change(sae), param=f"/saes/{sae.name}/optimizer/{name}")
    whole = sae.model_dump(mode="json")
    whole["architecture"] = config.model_dump(mode="json")
    whole["optimizer"] |= changes.optimizer
    whole["shard"] = changes.shard or sae.shard
    whole["dead_after_tokens"] = parent.dead_after_tokens(sae)
    return whole


def _cannot_change(sae: SAESpec) -> str:
    can = {"architecture": sae.architecture.numbers(), "optimizer": set(type(sae.optimizer).model_fields) - set(Moments._fields)}
    listed = "; ".join(f"of the {part}: {', '.join(sorted(names))}" for part, names in can.items() if names)
    return f"cannot change when a job goes on; what can, {listed}"
