"""The base of everything that crosses a process or a disk, and the types that several of them share."""

import pkgutil
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from sae_service.plain_words import OURS, retold


class Frozen(BaseModel):
    """An immutable value that refuses unknown keys, NaN and infinity, and says so in plain words."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _say_it_plainly(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            for name, field in cls.model_fields.items():
                if isinstance(data, dict) and isinstance(data.get(name), bool) and _is_number(field.annotation):
                    # pydantic takes true for 1.
                    refuse((name,), f"must be a number, not {str(data[name]).lower()}", data[name])
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(cls.__name__, retold(error, cls.model_fields)) from None


def _is_number(annotation: Any) -> bool:
    """Whether a type takes numbers and no true or false."""
    kinds = {annotation, *get_args(annotation), *(kind for part in get_args(annotation) for kind in get_args(part))}
    return bool(kinds & {int, float}) and bool not in kinds


def must(words: str) -> WrapValidator:
    """For a type whose rule wants words: whatever is wrong with a value, the error says that it must ..."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError(OURS, f"must {words}") from None  # pyright: ignore[reportArgumentType]

    return WrapValidator(check)


Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    must("be a name: letters, digits, '.', '_' and '-', at most 64 of them, the first a letter or a digit"),
]

Duration = Annotated[
    Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] | Annotated[float, Field(ge=0, le=1)],
    must("be a whole number of steps, such as 1000, or a share of the job's steps with a point, up to 1.0, such as 0.05"),
    Field(description="A whole number, such as 1, counts steps; one with a point, up to 1.0, is a share of the job's steps."),
]

_NOT_A_FORMAT = {"file_format", "folder", "torch_zip"}
SPEC_VERSION = 2
"""Of the specs that this release writes. It reads those of all versions before."""

FormatName = StrEnum(
    "FormatName",
    sorted({module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "formats")])} - _NOT_A_FORMAT),
)
"""The names of the file formats: each is a module in `formats/`, which need not be imported to know them."""
OWN_FORMAT = FormatName("saelens")
"""The format in which a job's SAEs are kept."""
SAES = "saes/"
"""Below it, among the files of a checkpoint, each SAE has a folder of its name."""
DEFAULT_PORT = 8000
"""Where the service listens, and is looked for."""

Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["float32", "tensorfloat32", "bfloat16"]
"""What the factors of a matrix product are rounded to: 24, 11 or 8 significant bits. Sums are float32."""
CacheDtype = Literal["float32", "bfloat16", "int8"]
WeightProcessing = Literal["none", "compatibility"]
Normalization = Literal["unit_mean_square", "sqrt_d_in", "none"]
"""How one scalar per hook point scales the rows: E‖x‖² = 1, E‖x‖ = sqrt(d_in), or not at all."""


class ArchitectureConfig(Frozen):
    """What every architecture's config has. Fields that are floats are traced: changing one never recompiles."""

    model_config = ConfigDict(validate_default=True)  # a default of 32 for a float becomes one

    kind: str
    d_sae: int = Field(gt=0, le=1 << 24, description="Number of latents.")

    def numbers(self) -> dict[str, float]:
        """The float fields by name: all that may differ between SAEs that share one compiled step."""
        return {name: value for name, value in self if isinstance(value, float)}

    def structure(self) -> "ArchitectureConfig":
        """This config with every float set to 0: the part that is compiled in."""
        return self.model_copy(update=dict.fromkeys(self.numbers(), 0.0))

    def with_numbers(self, numbers: dict[str, Any]) -> "ArchitectureConfig":
        """This config with `numbers` (Python floats or traced arrays) in place of its floats."""
        return self.model_copy(update=numbers)


class BypassConfig(ArchitectureConfig):
    """An architecture whose transcoders can have a linear bypass beside their latents."""

    skip: bool = Field(
        default=False, description="Whether a matrix carries over what is read, beside the latents (with hook_name_out)."
    )


class ResamplingConfig(ArchitectureConfig):
    """An architecture whose dead latents can be started anew."""

    resample_at: tuple[Duration, ...] = Field(
        default=(), description="When dead latents are started anew: steps, or shares of the job's steps."
    )
    lr_warm_up_again: bool = Field(
        default=False, description="Whether the learning rate warms up again after each time that latents are started anew."
    )


MOST_BETA1_OF_BFLOAT16 = 0.99


class Moments(NamedTuple):
    """How the two means that Adam remembers are kept from step to step: see `OptimizerConfig`."""

    first_moment: str = "float32"
    second_moment: str = "float32"


class OptimizerConfig(Frozen):
    """Adam and the schedules around it. What a job leaves out is the architecture's own default."""

    lr: float = Field(gt=0, description="Peak learning rate.")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float | None = Field(
        default=None, gt=0, description="Largest norm of the gradient; null does not clip."
    )
    lr_warm_up: Duration = Field(default=0, description="Steps, or share of the job, until the learning rate is at its peak.")
    lr_warm_up_shape: Literal["linear", "cosine"] = Field(
        default="linear", description="linear from 0, or the cosine from a tenth of the peak that Gemma Scope uses."
    )
    lr_decay: Duration = Field(
        default=0, description="Steps, or share of the job, at its end over which the learning rate falls linearly to 0."
    )
    sparsity_warm_up: Duration = Field(
        default=0, description="Steps, or share of the job, over which the sparsity coefficient rises linearly from 0."
    )
    first_moment: Literal["float32", "bfloat16"] = Field(
        default="float32", description="How the mean of the gradients is kept from step to step: 4 or 2 bytes a weight."
    )
    second_moment: Literal["float32", "factored", "int8"] = Field(
        default="float32", description="How the mean of their squares is kept: 4 bytes a weight; one number for each row and "
        "column of a matrix; or 1 byte a weight, with a scale for each 256.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check_first_moment(self) -> Self:
        if self.first_moment == "bfloat16" and self.beta1 > MOST_BETA1_OF_BFLOAT16:
            at_most = f"keeps 8 bits, in which steps of a beta1 above {MOST_BETA1_OF_BFLOAT16} are lost"
            refuse(("first_moment",), f"{at_most}; use float32, or lower beta1", self.first_moment)
        return self

    @property
    def moments(self) -> Moments:
        """How the optimiser's memory is kept, which cannot change while an SAE trains."""
        return Moments(self.first_moment, self.second_moment)


def pointer(location: Iterable[Any], value: Any) -> str:
    """The JSON pointer of a validation error's location in `value`, without the names of union members that pydantic puts
    between.
    """
    parts, path = list(location), list[str]()
    for index, part in enumerate(parts):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        elif index < len(parts) - 1 or not isinstance(value, dict):
            continue
        path.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in path)


def with_nul(value: Any, location: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in `value`, a model's dump, there are strings with the character NUL."""
    if isinstance(value, str) and "\0" in value:
        yield location
    elif isinstance(value, dict | list | tuple):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from with_nul(item, (*location, part))


MAX_ITEMS, MAX_DEPTH = 1024, 32


def refuse_long(value: Any, location: tuple[str | int, ...] = ()) -> None:
    """Raises a validation error for a list or an object of more than MAX_ITEMS items anywhere in `value`, or one that is nested
    too deeply. To be called before items are validated: a hundred thousand wrong ones would make as many errors.
    """
    if not isinstance(value, dict | list | tuple):
        return
    if len(location) > MAX_DEPTH:
        refuse(location[:1], f"is nested deeper than {MAX_DEPTH} levels", None)
    if len(value) > MAX_ITEMS:
        refuse(location, f"has {len(value)} items; at most {MAX_ITEMS} are read", None)
    for part, item in value.items() if isinstance(value, dict) else enumerate(value):
        refuse_long(item, (*location, part))


def refuse(location: tuple[str | int, ...], message: str, value: object) -> None:
    """Raises a validation error that blames the field at `location` below the model being validated."""
    error = PydanticCustomError(OURS, message)  # pyright: ignore[reportArgumentType]
    raise ValidationError.from_exception_data(
        "spec", [InitErrorDetails(type=error, loc=location, input=value)]
    )
