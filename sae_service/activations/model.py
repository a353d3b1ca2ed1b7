"""The language model: activations at hook points, and its losses with hook points edited.

The only adapter of TransformerLens 4. Tokens go in as integers that we packed, never as strings, because the
library's default for BOS differs between model families.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sae_service.activations import splice
from sae_service.activations import tokenizer as text
from sae_service.activations.blame import blamed
from sae_service.activations.documents import Tokenizing
from sae_service.activations.load_model import load_bridge
from sae_service.activations.precision import EPS, cpu_name, products_in, settings
from sae_service.activations.splice import Edit, Reconstruct
from sae_service.activations.tried_pass import TriedPass
from sae_service.errors import InvalidSpec, ModelNotFound
from sae_service.hook_points import FOLDING_FIELD, check_folding, not_exact
from sae_service.readable import EVERYWHERE, Roots
from sae_service.sae.sites import Sites
from sae_service.spec import ModelSpec, fields
from sae_service.spec.precision import of_model

SAMPLE = (2, 7)
"""Prompts and tokens in each that a model is tried on: numbers that no model has for another reason."""


class LanguageModel(Tokenizing):
    """A language model, ready to be read. One forward pass at a time; callers on threads wait their turn.

    What its own forward pass has is read there, and all else through the TransformerLens bridge, which takes longer.
    `precision` is that of its matrix products.
    """

    def __init__(self, spec: ModelSpec, device: str, roots: Roots = EVERYWHERE) -> None:
        """Loads the model. Raises ModelNotFound, at once where there is no network, and InvalidSpec.

        `tokenizer` is None if the model has none that can be read; then there are token ids, but no text.

        Args:
            roots: where its files may be, and those of the text that it reads.
        """
        self.device, self.roots, self._spec, self._lock = device, roots, spec, threading.RLock()
        self.precision = of_model(spec, device)
        self.bridge = load_bridge(spec, device, roots)
        self.tokenizer: Any = None
        try:
            self.tokenizer = text.load_tokenizer(spec)
        except ModelNotFound as error:
            self._no_tokenizer = error
        if spec.weight_processing == "compatibility":
            self._fold()

    @property
    def precisions(self) -> dict[str, Any]:
        """What its products run in, and what torch is set to for that."""
        return {"products": self.precision, "torch": settings(self.precision, self._spec.dtype, self.device)}

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self._spec.dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.bridge.parameters())

    def computed_by(self) -> dict[str, Any]:
        """The device, and what else the last bits of its results depend on, as JSON."""
        kernels = {"kernels": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
        device = {"gpu": torch.cuda.get_device_name()} if self.device == "cuda" else {"cpu": cpu_name(), **kernels}
        return device | {"precision": self.precisions}

    def logits_bytes(self, n_tokens: int) -> int:
        """Bytes of the logits of so many tokens; a pass that measures losses ends with them."""
        return n_tokens * self.n_vocab * self._dtype.itemsize

    @property
    def n_vocab(self) -> int:
        """How many tokens it has; their ids are less."""
        return self.bridge.cfg.d_vocab

    @property
    def family(self) -> str | None:
        """What its configuration calls `model_type`."""
        return getattr(self.bridge.original_model.config, "model_type", None)

    @property
    def bos(self) -> int:
        """The token that starts a row of text and separates documents: BOS, or EOS where a tokenizer has no BOS.

        Raises:
            ModelNotFound, InvalidSpec: there is no tokenizer, or none of the two.
        """
        return text.start_token(self._of_text, self.n_vocab)

    @property
    def _of_text(self) -> Any:
        if self.tokenizer is None:
            raise self._no_tokenizer
        return self.tokenizer

    def excluded_tokens(self, exclude: tuple[str | int, ...]) -> tuple[int, ...]:
        """Token ids for names such as "bos"; names that the tokenizer lacks are left out."""
        named = {item: getattr(self.tokenizer, f"{item}_token_id", None) for item in exclude if isinstance(item, str)}
        if "bos" in named and self.tokenizer is not None:
            named["bos"] = text.separator(self.tokenizer)
        ids = (named[item] if isinstance(item, str) else item for item in exclude)
        return tuple(sorted({int(i) for i in ids if i is not None}))

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Token ids of each document, without special tokens. Raises ModelNotFound if there is no tokenizer."""
        return text.encode(self._of_text, documents)

    def sample(self) -> Int[np.ndarray, "prompts context_size"]:
        """A few tokens, always the same, to try the model on."""
        return np.random.default_rng(0).integers(0, self.n_vocab, SAMPLE, dtype=np.int32)

    @property
    def tolerance(self) -> float:
        """The relative difference of losses that rounding alone may make."""
        return max(1e-4, 4 * EPS[self.precision])

    def first_losses(self) -> Float[np.ndarray, "prompts predicted"]:
        """The losses of the sample. Raises InvalidSpec if the model does not run, and OutOfMemory."""
        is_full = self._spec.dtype == "float32"
        param, hint = (fields.MODEL_NAME, "") if is_full else ("/stream/model/dtype", "Use float32.")
        with blamed(InvalidSpec, f"the model does not run in {self._spec.dtype}", param, hint):
            return self.losses(self.sample())

    def _fold(self) -> None:
        """Folds the weights. Raises InvalidSpec if that is another model, whose losses are others."""
        check_folding(self.family)
        before = self.first_losses()
        with blamed(InvalidSpec, "the weights of this model cannot be folded", FOLDING_FIELD, 'Use "none".'):
            self.bridge.enable_compatibility_mode()
            after = self.losses(self.sample())
        if np.linalg.norm(after - before) > self.tolerance * np.linalg.norm(before):
            raise not_exact()

    @contextmanager
    def computing(self, gradients: bool = False) -> Iterator[None]:
        """A forward pass, one at a time; with gradients if they are wanted."""
        with self._lock, torch.inference_mode(not gradients), products_in(self.precision, self._spec.dtype, self.device):
            yield

    def fired(self, tokens: Int[np.ndarray, "prompts context_size"], hook_names: Iterable[str]) -> list[tuple[str, Any]]:
        """What each hook point has in a whole forward pass, as the library has it, in the order in which it is computed."""
        found: list[tuple[str, Any]] = []

        def note(value: Any, hook: Any, name: str) -> None:
            found.append((name, value.clone() if isinstance(value, torch.Tensor) else value))

        with self.computing():
            hooks = [(name, partial(note, name=name)) for name in hook_names]
            self.bridge.run_with_hooks(self.ids(tokens), fwd_hooks=hooks, return_type="logits")
        return found

    def ids(self, tokens: Int[np.ndarray, "prompts context_size"]) -> torch.Tensor:
        """Tokens on its device. Raises InvalidSpec for one that it does not have."""
        if (largest := int(tokens.max())) >= self.n_vocab:
            message = f"there is a token {largest}, and the model has {self.n_vocab} tokens: it is not the tokenizer's model."
            raise InvalidSpec(message, param=fields.MODEL_NAME)
        return torch.from_numpy(tokens).long().to(self.device)

    @cached_property
    def _own(self) -> TriedPass | None:
        """The model's own forward pass; None if the weights are folded, which is the bridge's doing."""
        if self._spec.weight_processing != "none":
            return None
        return TriedPass(self.bridge, self._read_by_bridge, self.ids(self.sample()), self.tolerance)

    @property
    def warnings(self) -> list[str]:
        """Where the model's own forward pass was found to have other values than the bridge."""
        return self._own.warnings if self._own else []

    def _read_by_bridge(self, ids: torch.Tensor, hook_names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        stop = last_layer(hook_names)
        _, cache = self.bridge.run_with_cache(ids, names_filter=list(hook_names), stop_at_layer=stop, return_type=None)
        return {name: cache[name] for name in hook_names if name in cache}

    def activations(
        self, tokens: Int[np.ndarray, "prompts context_size"], hook_names: tuple[str, ...]
    ) -> dict[str, Float[torch.Tensor, "prompts context_size d_in"]]:
        """Activations at each hook point, whatever others are read, in a forward pass that stops with the last one or its layer.

        It takes two passes where some of them are read in the model's own pass, and others by the bridge alone.
        """
        with self.computing():
            read = self._own.read if self._own else self._read_by_bridge
            found = read(self.ids(tokens), hook_names)
        missing = [name for name in hook_names if name not in found]
        if missing:
            raise InvalidSpec(f"the model computed nothing at hook point {missing[0]!r}", param="/saes")
        return {name: found[name].flatten(start_dim=2).to(self._dtype) for name in hook_names}

    def show(
        self, tokens: Int[np.ndarray, "prompts context_size"], looks: Mapping[str, Callable[[torch.Tensor], None]]
    ) -> None:
        """Shows what each hook point has when it is computed, as the library has it: nobody holds all of them at a time."""
        ids = self.ids(tokens)
        with self.computing():
            own = {name: look for name, look in looks.items() if self._own and self._own.trusted((name,))}
            if own and self._own and self._own.plain:
                self._own.plain.show(ids, own)
            others = {name: look for name, look in looks.items() if name not in own}
            if others:
                hooks = [(name, partial(_shown, look)) for name, look in others.items()]
                stop = last_layer(tuple(others))
                self.bridge.run_with_hooks(ids, fwd_hooks=hooks, stop_at_layer=stop, return_type="logits" if stop is None else None)

    def losses(
        self, tokens: Int[np.ndarray, "prompts context_size"], edits: Mapping[str, Edit] | None = None
    ) -> Float[np.ndarray, "prompts predicted"]:
        """Next-token loss in nats at every position but the last, with the hook points in `edits` edited."""
        ids = self.ids(tokens)
        with self.computing():
            logits = self.logits(ids, edits or {})
            # One prompt at a time: with a large vocabulary the logits are the most that there is, and these are copies of them.
            found = [
                torch.nn.functional.cross_entropy(prompt[:-1].float(), predicted[1:], reduction="none")
                for prompt, predicted in zip(logits, ids, strict=True)
            ]
        return torch.stack(found).cpu().numpy()

    def logits(self, ids: Int[torch.Tensor, "prompts context_size"], edits: Mapping[str, Edit]) -> torch.Tensor:
        """The logits with the hook points in `edits` edited, within `computing`."""

        def look(tensor: torch.Tensor, hook: Any = None, *, edit: Edit) -> torch.Tensor | None:
            edited = edit(tensor.flatten(start_dim=2))
            return None if edited is None else edited.reshape(tensor.shape).to(tensor.dtype)

        looks = {name: partial(look, edit=edit) for name, edit in edits.items()}
        if plain := self._own and self._own.trusted(looks):
            return plain.logits(ids, looks)
        return self.bridge.run_with_hooks(ids, fwd_hooks=list(looks.items()), return_type="logits")

    def spliced_losses(
        self, tokens: Int[np.ndarray, "prompts context_size"], keep: Bool[np.ndarray, "prompts context_size"], sites: Sites,
        reconstruct: Reconstruct,
    ) -> Float[np.ndarray, "prompts predicted"]:  # fmt: skip
        """`losses` with what an SAE writes in place of the activations, at the positions in `keep`.

        `reconstruct` is called once, on the rows of all positions. One hook point is written in the pass that reads. Of
        several, an early one cannot depend on what is read at a later one in the same pass: all are read in a clean pass
        first, and a second one replaces all of them. The losses then say what it does to replace all.
        """
        kept = self._mask(keep)
        if len(sites.write) == 1:
            return self.losses(tokens, splice.spliced_while_read(kept, sites, reconstruct))
        y_hat = splice.reconstructed(self.activations(tokens, sites.hook_names), sites, reconstruct)
        parts = y_hat.split([width for _, width in sites.write], dim=-1)
        edits = {name: partial(splice.replaced, kept, part) for name, part in zip(sites.writes, parts, strict=True)}
        return self.losses(tokens, edits)

    def zeroed_losses(
        self, tokens: Int[np.ndarray, "prompts context_size"], keep: Bool[np.ndarray, "prompts context_size"],
        hook_names: Sequence[str],
    ) -> Float[np.ndarray, "prompts predicted"]:  # fmt: skip
        """`losses` with zeros in place of the activations of all `hook_names`, at the positions in `keep`."""
        kept = self._mask(keep)
        return self.losses(tokens, dict.fromkeys(hook_names, lambda rows: rows.masked_fill(kept, 0)))

    def _mask(self, keep: Bool[np.ndarray, "prompts context_size"]) -> Bool[torch.Tensor, "prompts context_size 1"]:
        return torch.from_numpy(keep).to(self.device)[..., None]


def _shown(look: Callable[[torch.Tensor], None], value: torch.Tensor, hook: Any) -> None:
    look(value)


def keep_mask(tokens: Int[np.ndarray, "prompts context_size"], excluded: tuple[int, ...]) -> Bool[np.ndarray, "..."]:
    """True where a position is trained on and measured."""
    return ~np.isin(tokens, excluded)


def last_layer(hook_names: tuple[str, ...]) -> int | None:
    """The layer before which the forward pass may stop, or None if a hook point lies outside the blocks.

    One more than the last layer named, even for its input: one lower would silently leave the cache empty.
    """
    layers = [re.match(r"blocks\.(\d+)\.", name) for name in hook_names]
    numbers = [int(match.group(1)) for match in layers if match]
    return max(numbers) + 1 if len(numbers) == len(hook_names) else None
