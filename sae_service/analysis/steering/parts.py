"""What carries an edit to the difference of two logits: the direct path, each later attention and MLP, the final norm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sae_service.activations import final_norm, observed
from sae_service.activations.model import LanguageModel
from sae_service.activations.pushed import Push, Said
from sae_service.activations.unembedding import Unembedding, unembedding
from sae_service.analysis.steering.direction import Direction
from sae_service.errors import InvalidSpec
from sae_service.hook_points import BLOCK, RESIDUAL_SITES

STREAM_SITES = (*RESIDUAL_SITES, "hook_embed", "hook_pos_embed", final_norm.SITE)
"""Hook points at which what is added is added to the residual stream."""
DIRECT, NORM, OTHER = "direct", "final_norm", "other"


@dataclass(frozen=True)
class Split:
    """Splits the change of a difference of logits.

    With r the last row of the residual stream, s the scale of the final norm on it and u the contrast's direction, the
    difference is s (r u) and a constant. Between a clean run (0) and a steered one it changes by

        s0 (r - r0) u  +  (s - s0) r u,

    whose first term is a sum over what is added to the stream: the edit itself (`direct`) and the changes of what each later
    attention and MLP writes. The second is `final_norm`. `other` is what is left: rounding, and what some families do beside
    (a cap on logits, a factor on what a block writes).

    Attributes:
        known: the final norm and the matrix of tokens.
        u: the direction of the contrast.
        outputs: hook points of what later attentions and MLPs write.
        direct: the hook points and parts of the direction that are added to the stream.
    """

    model: LanguageModel
    known: Unembedding
    u: Float[np.ndarray, " d_model"]
    outputs: tuple[str, ...]
    direct: Mapping[str, Float[np.ndarray, " d_model"]]

    @property
    def watched(self) -> tuple[str, ...]:
        """The hook points whose rows it needs."""
        return (*self.outputs, final_norm.SITE)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts."""
        written = (name.replace(".hook_", ".").removesuffix("_out").removeprefix("blocks.") for name in self.outputs)
        return (DIRECT, *written, NORM, OTHER)

    def __call__(
        self, clean: Said, said: Said, push: Push, total: Float[np.ndarray, " runs"]
    ) -> Float[np.ndarray, "runs parts"]:
        """The parts of each run, which add up to the total.

        Args:
            total: the change of the difference of the logits.
        """
        last, before = said.rows[final_norm.SITE], clean.rows[final_norm.SITE]
        scale = final_norm.inverse_scales(self.model, self.known, np.concatenate([before, last]))
        strengths = push.strengths[:, -1].astype(np.float64)
        edits = {name: strengths * (part.astype(np.float64) @ self.u) for name, part in self.direct.items()}
        columns = [sum(edits.values(), np.zeros(len(last)))]
        for name in self.outputs:
            change = (said.rows[name].astype(np.float64) - clean.rows[name]) @ self.u
            columns.append(change - edits.get(name, 0))
        parts = np.stack(columns, axis=1) * scale[0]
        norm = (last.astype(np.float64) @ self.u) * (scale[1:] - scale[0])
        return np.column_stack([parts, norm, total - parts.sum(axis=1) - norm])


def split(model: LanguageModel, direction: Direction, first: int, second: int) -> Split:
    """What splits the difference of the logits of two tokens. Raises InvalidSpec if the model's final norm is not known."""
    known = unembedding(model)
    if known is None or final_norm.SITE not in model.bridge.hook_dict:
        raise InvalidSpec("cannot be split: the final norm of this model is none that is known here", "/contrast", "Leave it out.")
    n_layers = model.bridge.cfg.n_layers
    later = range(min(_layer(name, n_layers) for name in direction.parts), n_layers)
    names = [f"blocks.{layer}.hook_{part}_out" for layer in later for part in ("attn", "mlp")]
    direct = {name: part for name, part in direction.parts.items() if _is_of_stream(name)}
    u = final_norm.contrast(known, first, second)
    return Split(model, known, u, tuple(observed.fit(model, names)), direct)


def _layer(hook_name: str, n_layers: int) -> int:
    """The first layer whose output an edit may change."""
    block = BLOCK.fullmatch(hook_name)
    if block is None:
        return n_layers if hook_name.startswith(("ln_final", "unembed")) else 0
    return int(block[1]) + (block[2] == "hook_resid_post")


def _is_of_stream(hook_name: str) -> bool:
    block = BLOCK.fullmatch(hook_name)
    return (block[2] if block else hook_name) in STREAM_SITES


def clusters(profiles: Float[np.ndarray, "coefficients parts"], names: Sequence[str], n: int) -> dict[str, int]:
    """Groups of parts whose profiles over the coefficients have one shape, by k-means on profiles of length 1.

    Parts that change nothing are in none. Groups are numbered from 1, in the order of the parts.
    """
    from scipy.cluster.vq import kmeans2

    lengths = np.linalg.norm(profiles, axis=0)
    is_there = lengths > 1e-4 * max(lengths.max(initial=0), 1e-30)
    shapes = (profiles / np.where(is_there, lengths, 1)).T[is_there]
    if not len(shapes):
        return {}
    _, found = kmeans2(shapes, min(n, len(shapes)), minit="++", rng=np.random.default_rng(0), missing="warn")
    numbers = {label: index + 1 for index, label in enumerate(dict.fromkeys(found.tolist()))}
    there = (name for name, is_one in zip(names, is_there, strict=True) if is_one)
    return {name: numbers[label] for name, label in zip(there, found.tolist(), strict=True)}
