"""The direction that is added, how much of it there is already, and how much is added where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from sae_service.activations.model import LanguageModel
from sae_service.analysis.prompted import rows_at
from sae_service.analysis.prompts import Reading
from sae_service.errors import InvalidSpec
from sae_service.sae.inference import InferenceSAE
from sae_service.spec import SteeringSpec


@dataclass(frozen=True)
class Direction:
    """A direction.

    Attributes:
        parts: a vector of length 1, cut over the hook points where it is added.
        length: that of the latent's decoder row; 1 if there is no latent.
        sae: that of the latent.
    """

    parts: Mapping[str, Float[np.ndarray, " width"]]
    length: float = 1.0
    sae: InferenceSAE | None = None
    latent: int = 0

    def activations(
        self, model: LanguageModel, tokens: Int[np.ndarray, "prompts positions"]
    ) -> Float[np.ndarray, "prompts positions"]:
        """How much of it there is in the undisturbed model: the latent's activation, or the product with the rows."""
        if self.sae is None:
            found = rows_at(model, tokens, tuple(self.parts))
            return sum((found[name] @ part for name, part in self.parts.items()), np.zeros(tokens.shape, np.float32))
        assert self.sae.sites is not None
        found = rows_at(model, tokens, self.sae.sites.reads)
        x = np.concatenate([found[name] for name in self.sae.sites.reads], axis=-1).reshape(tokens.size, -1)
        return np.asarray(self.sae.encode(jnp.asarray(x))[:, self.latent]).reshape(tokens.shape)


def of_latent(sae: InferenceSAE, latent: int) -> Direction:
    """That of a latent. Raises InvalidSpec if there is none of this number, or it writes nothing."""
    d_sae = sae.W_dec.shape[0]
    if latent >= d_sae:
        raise InvalidSpec(f"the SAE has no latent {latent}; its latents are 0 to {d_sae - 1}", "/latent")
    assert sae.sites is not None
    row = np.asarray(sae.W_dec[latent], np.float32)
    length = float(np.linalg.norm(row))
    if not np.isfinite(length) or length == 0:
        raise InvalidSpec(f"latent {latent} has no direction: its decoder row is zero or not finite", "/latent")
    cuts = np.cumsum([width for _, width in sae.sites.write])[:-1]
    return Direction(dict(zip(sae.sites.writes, np.split(row / length, cuts), strict=True)), length, sae, latent)


def given(numbers: Sequence[float], hook_name: str, width: int) -> Direction:
    """One that is given as numbers. Raises InvalidSpec if the rows at the hook point have another width."""
    if len(numbers) != width:
        raise InvalidSpec(f"has {len(numbers)} numbers, and the rows of {hook_name} have {width}", "/direction")
    exact = np.array(numbers, np.float64)
    exact /= np.abs(exact).max()
    return Direction({hook_name: (exact / np.linalg.norm(exact)).astype(np.float32)})


def row_norm(model: LanguageModel, direction: Direction, prompts: Sequence[Reading]) -> float:
    """The mean norm of the rows that are edited, over the positions of the prompts that count."""
    norms = list[np.ndarray]()
    for one in prompts:
        found = rows_at(model, one.tokens[None], tuple(direction.parts))
        norms.append(np.linalg.norm(np.concatenate([rows[0] for rows in found.values()], axis=-1), axis=-1)[one.keep])
    return float(np.concatenate(norms).mean())


@dataclass(frozen=True)
class Strengths:
    """How much of the direction each coefficient adds.

    Attributes:
        unit: of the coefficients of `add` and `clamp`.
    """

    job: SteeringSpec
    direction: Direction
    unit: float

    @property
    def needs_activations(self) -> bool:
        """Whether it depends on how much there is already."""
        return self.job.mode != "add"

    def of(
        self, coefficients: Float[np.ndarray, " runs"], there: Float[np.ndarray, "#runs positions"],
        edited: Bool[np.ndarray, "#runs positions"],
    ) -> Float[np.ndarray, "runs positions"]:  # fmt: skip
        """What each run adds at each position, along the vector of length 1.

        Args:
            there: how much of the direction there is.
            edited: where something is added.
        """
        length, wanted = self.direction.length, coefficients[:, None] * self.unit
        if self.job.mode == "clamp":
            wanted = (wanted - there) * length
        elif self.job.mode == "ablate":
            wanted = -coefficients[:, None] * there * length
        return np.where(edited, wanted, 0.0)


def edited(job: SteeringSpec, one: Reading) -> Bool[np.ndarray, " positions"]:
    """The positions of a prompt that are edited. Raises InvalidSpec if there are none."""
    where = one.keep.copy()
    if job.positions == "last":
        where[:-1] = False
    if not where.any():
        raise InvalidSpec("its last token is one that is left out (exclude), and positions are the last", one.place)
    return where
