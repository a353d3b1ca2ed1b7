"""Activations whose features are known: sparse strengths times fixed directions, so that recovery can be measured.

Sources: Sharkey et al. 2022, "Taking features out of superposition with sparse autoencoders" (sparse strengths on
random unit directions); Elhage et al. 2022, "Toy Models of Superposition" (directions that a small model has learned).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sae_service.activations.buffer import FillStart
from sae_service.numerics import exact, random_rows, unit_rows
from sae_service.spec import StreamSpec, SyntheticSpec
from sae_service.spec.stream import SYNTHETIC_HOOK

CHUNK = 8192
HELD_OUT_CHUNK = 2048
"""So many rows are measured at once, beside which all latents of an SAE find room."""
HELD_OUT = 1 << 30
KEYS = 0x73796E74
"""Apart from the seeds of SAEs, which draw their initial directions from the same key of the stream."""
TOY_STEPS = 2000
TOY_BATCH = 1024


@dataclass(frozen=True)
class Truth:
    """The features: their directions, unit rows, and the probability with which each fires on its own.

    `onward` is the linear map from hook_synthetic to hook_synthetic_out; its columns are unit vectors, so that rows keep
    their mean square.
    """

    directions: Float[Array, "n_features d_in"]
    probabilities: Float[Array, " n_features"]
    onward: Float[Array, "d_in d_in"]

    def at(self, hook_names: Sequence[str], rows: Float[Array, "n d_in"]) -> Float[Array, "n widths"]:
        """What is at the hook points, side by side, where `rows` are at hook_synthetic: activations, or directions."""
        return jnp.concatenate([rows if name == SYNTHETIC_HOOK else exact(rows, self.onward) for name in hook_names], axis=1)


def _key(seed: int, use: int) -> Any:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), KEYS), use)


def truth(spec: SyntheticSpec, seed: int) -> Truth:
    """The features of a stream, a function of its seed."""
    ranks = jnp.arange(spec.n_features)
    probabilities = jnp.clip(spec.firing_probability * spec.firing_decay**ranks, 0, 1)
    key = _key(seed, 1)
    onward = random_rows(_key(seed, 3), spec.d_in, spec.d_in).T
    if spec.directions == "random":
        return Truth(random_rows(key, spec.n_features, spec.d_in), probabilities, onward)
    return Truth(toy_model_directions(spec, probabilities, key), probabilities, onward)


def toy_model_directions(spec: SyntheticSpec, probabilities: Array, key: Any) -> Float[Array, "n_features d_in"]:
    """Directions that a toy model of superposition learns: x_hat = ReLU(x W Wᵀ + b), W [n_features, d_in], mean squared
    error, all features equally important. Directions alone are taken: how strong a feature is, is `strength`. One that it
    gave up keeps the direction in which it began, so that the truth has as many features as were asked for.
    """
    start = random_rows(key, spec.n_features, spec.d_in)
    optimizer = optax.adamw(1e-3)

    def loss(weights: tuple[Array, Array], x: Array) -> Array:
        W, b = weights
        return jnp.mean(jnp.sum(jnp.square(x - jax.nn.relu(exact(exact(x, W), W.T) + b)), axis=1))

    def step(carry: Any, index: Array) -> tuple[Any, None]:
        weights, state = carry
        x = strengths(spec, probabilities, jax.random.fold_in(key, index), TOY_BATCH)
        change, state = optimizer.update(jax.grad(loss)(weights, x), state, weights)
        return (optax.apply_updates(weights, change), state), None

    weights = start, jnp.zeros(spec.n_features)
    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), jnp.arange(TOY_STEPS))
    learned = weights[0]
    is_kept = jnp.linalg.norm(learned, axis=1, keepdims=True) > 0.1
    return unit_rows(jnp.where(is_kept, learned, start))


def strengths(spec: SyntheticSpec, probabilities: Array, key: Any, n_rows: int) -> Float[Array, "rows n_features"]:
    """How strongly each feature is present in each of `n_rows` rows; 0 where it does not fire.

    Correlated features share one normal variable by `correlation` before they are cut off at their probability. With
    a hierarchy, feature i > 0 fires only where its parent (i - 1) // branching does, so children are rarer still.
    """
    fires_key, shared_key, strength_key = jax.random.split(key, 3)
    own = jax.random.normal(fires_key, (n_rows, spec.n_features))
    shared = jax.random.normal(shared_key, (n_rows, 1))
    mixed = jnp.sqrt(spec.correlation) * shared + jnp.sqrt(1 - spec.correlation) * own
    fires = mixed > -jax.scipy.special.ndtri(probabilities)
    if spec.branching:
        fires = _with_parents(fires, spec.branching)
    low, high = spec.strength
    return jnp.where(fires, jax.random.uniform(strength_key, fires.shape, minval=low, maxval=high), 0)


def _with_parents(fires: Array, branching: int) -> Array:
    n_features = fires.shape[1]
    parents = jnp.maximum((jnp.arange(n_features) - 1) // branching, 0)
    depth, covered = 0, 1
    while covered < n_features:
        covered, depth = covered * branching + 1, depth + 1
    for _ in range(depth):
        fires = fires & (fires[:, parents] | (jnp.arange(n_features) == 0))
    return fires


@partial(jax.jit, static_argnums=(0, 4))
def rows(
    spec: SyntheticSpec, directions: Array, probabilities: Array, key: Any, n_rows: int
) -> tuple[Float[Array, "rows n_features"], Float[Array, "rows d_in"]]:
    """Strengths, and the activations that they make, with noise."""
    strength_key, noise_key = jax.random.split(key)
    x = strengths(spec, probabilities, strength_key, n_rows)
    noise = spec.noise * jax.random.normal(noise_key, (n_rows, spec.d_in))
    return x, exact(x, directions) + noise


class SyntheticHarvest:
    """Fills of synthetic rows. Each chunk's key is its number, so a place in the stream is one count."""

    def __init__(self, stream: StreamSpec, hook_names: tuple[str, ...], start: FillStart) -> None:
        assert stream.synthetic is not None
        self._spec, self._hook_names, self._start = stream.synthetic, hook_names, start
        self._truth = truth(stream.synthetic, stream.seed)
        self._key = _key(stream.seed, 2)

    def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Array], FillStart]:
        """The next `n_rows` rows at every hook point, and where the following fill starts."""
        first = self._start.rows_taken
        chunks = [
            rows(self._spec, self._truth.directions, self._truth.probabilities, jax.random.fold_in(self._key, index), CHUNK)[1]
            for index in range(first // CHUNK, -(-(first + n_rows) // CHUNK))
        ]
        skipped = first % CHUNK
        found = jnp.concatenate(chunks)[skipped : skipped + n_rows]
        self._start = FillStart(rows_taken=first + n_rows)
        return {name: self._truth.at((name,), found) for name in self._hook_names}, self._start


@dataclass(frozen=True)
class HeldOutChunk:
    """Strengths, and rows at hook_synthetic; of the last chunk `n_rows` count, and the rest only keeps the shape."""

    strengths: Float[Array, "chunk n_features"]
    x: Float[Array, "chunk d_in"]
    n_rows: int


def held_out(stream: StreamSpec, known: Truth, n_rows: int) -> Iterator[HeldOutChunk]:
    """`n_rows` rows that no fill contains, in chunks of one shape. The n-th row is the same whatever `n_rows`."""
    assert stream.synthetic is not None
    key: Any = jax.random.fold_in(_key(stream.seed, 2), HELD_OUT)
    for index, first in enumerate(range(0, n_rows, HELD_OUT_CHUNK)):
        drawn = rows(stream.synthetic, known.directions, known.probabilities, jax.random.fold_in(key, index), HELD_OUT_CHUNK)
        yield HeldOutChunk(*drawn, n_rows=min(HELD_OUT_CHUNK, n_rows - first))
