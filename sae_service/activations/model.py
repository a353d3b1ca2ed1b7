"""The language model: activations at hook points, and its losses with hook points edited.

The only adapter of TransformerLens 4. Tokens go in as integers that we packed, never as strings, because the
library's default for BOS differs between model families.
"""

import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sae_service.activations import model_files
from sae_service.activations.documents import Tokenizing
from sae_service.activations.torch_to_jax import to_jax, to_torch
from sae_service.errors import InvalidSpec, ModelNotFound
from sae_service.readable import EVERYWHERE, Roots
from sae_service.sae.sites import Sites, Widths
from sae_service.settings import hub_host, is_offline
from sae_service.spec import ModelSpec, is_path

Edit = Callable[[torch.Tensor], torch.Tensor | None]
"""Sees the activations of a hook point, [prompts, context_size, width]. What it returns replaces them; None leaves them."""
Reconstruct = Callable[[jax.Array, jax.Array], jax.Array]
"""(x [rows, d_read], y [rows, d_write]) -> y_hat [rows, d_write], one row for each position of a batch."""


class LanguageModel(Tokenizing):
    """A TransformerLens bridge, ready to be read. One forward pass at a time; callers on threads wait their turn."""

    def __init__(self, spec: ModelSpec, device: str, roots: Roots = EVERYWHERE) -> None:
        """Loads the model. Raises ModelNotFound, at once where there is no network, or InvalidSpec.

        Args:
            roots: where its files may be, and those of the text that it reads.
        """
        self.device, self.roots, self._spec = device, roots, spec
        self.bridge = _load(spec, device, roots)
        self.tokenizer: Any = self.bridge.tokenizer
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.bridge.parameters())

    @property
    def n_vocab(self) -> int:
        """How many tokens it knows; ids are less than that."""
        return self.bridge.cfg.d_vocab

    def logits_bytes(self, n_tokens: int) -> int:
        """Bytes of the logits of so many tokens; a pass that measures losses ends with them."""
        return n_tokens * self.bridge.cfg.d_vocab * getattr(torch, self._spec.dtype).itemsize

    @property
    def bos(self) -> int:
        """The token that starts a row and separates documents: BOS, or EOS where a tokenizer has no BOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise InvalidSpec("the model's tokenizer has neither a BOS nor an EOS token", param="/stream/model/name")

    def excluded_tokens(self, exclude: tuple[str | int, ...]) -> tuple[int, ...]:
        """Token ids for names such as "bos"; names that the tokenizer lacks are left out."""
        ids = (getattr(self.tokenizer, f"{item}_token_id") if isinstance(item, str) else item for item in exclude)
        return tuple(sorted({int(i) for i in ids if i is not None} | ({self.bos} if "bos" in exclude else set())))

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Token ids of each document, without special tokens."""
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        return [item.ids for item in encoded]

    def check(self, hook_names: tuple[str, ...], context_size: int) -> dict[str, int]:
        """The width d_in at each hook point, by a short forward pass. Raises InvalidSpec for what cannot run."""
        limit = self.bridge.cfg.n_ctx
        if context_size > limit:
            raise InvalidSpec(
                f"must be at most the model's context of {limit}: {context_size}", param="/stream/context_size"
            )
        unknown = [name for name in hook_names if name not in self.bridge.hook_dict]
        if unknown:
            raise InvalidSpec(self._unknown_hook(unknown[0]), param="/saes")
        found = self.activations(np.full((1, 2), self.bos, dtype=np.int32), hook_names)
        return {name: found[name].shape[-1] for name in hook_names}

    def _unknown_hook(self, name: str) -> str:
        import difflib

        close = difflib.get_close_matches(name, list(self.bridge.hook_dict), n=3)
        return f"the model has no hook point {name!r}." + (f" Close: {', '.join(close)}." if close else "")

    def activations(
        self, tokens: Int[np.ndarray, "prompts context_size"], hook_names: tuple[str, ...]
    ) -> dict[str, Float[torch.Tensor, "prompts context_size d_in"]]:
        """Activations at each hook point in one forward pass, which stops after the last layer needed."""
        with self._lock, torch.inference_mode():
            _, cache = self.bridge.run_with_cache(
                torch.from_numpy(tokens).long().to(self.device),
                names_filter=list(hook_names),
                stop_at_layer=last_layer(hook_names),
                return_type=None,
            )
        missing = [name for name in hook_names if name not in cache]
        if missing:
            raise InvalidSpec(f"the model computed nothing at hook point {missing[0]!r}", param="/saes")
        return {name: cache[name].flatten(start_dim=2) for name in hook_names}

    def check_order(self, reads: Sequence[str], writes: Sequence[str], param: str | None = None) -> None:
        """Checks that an SAE which writes other hook points than it reads can be spliced in: by a short forward pass.

        Raises:
            InvalidSpec: one that it writes is computed before one that it reads. `param` is the field to blame.
        """
        if set(reads) == set(writes):
            return
        order: list[str] = []

        def note(_: torch.Tensor, name: str) -> None:
            order.append(name)

        tokens = np.full((1, 2), self.bos, dtype=np.int32)
        self.losses(tokens, {name: partial(note, name=name) for name in (*reads, *writes)})
        last_read, first_written = max(reads, key=order.index), min(writes, key=order.index)
        if order.index(first_written) < order.index(last_read):
            raise InvalidSpec(
                f"the model computes {first_written}, which is written, before {last_read}, which is read.",
                param=param,
                hint="hook_name_out must come after hook_name in the model.",
            )

    def losses(
        self, tokens: Int[np.ndarray, "prompts context_size"], edits: Mapping[str, Edit] | None = None
    ) -> Float[np.ndarray, "prompts predicted"]:
        """Next-token loss in nats at every position but the last, with the hook points in `edits` edited."""
        ids = torch.from_numpy(tokens).long().to(self.device)

        def hook(tensor: torch.Tensor, hook: Any, edit: Edit) -> torch.Tensor | None:
            edited = edit(tensor.flatten(start_dim=2))
            return None if edited is None else edited.reshape(tensor.shape).to(tensor.dtype)

        hooks = [(name, partial(hook, edit=edit)) for name, edit in (edits or {}).items()]
        with self._lock, torch.inference_mode():
            logits = self.bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits")
            # One prompt at a time: with a large vocabulary the logits are the most that there is, and these are copies of them.
            found = [
                torch.nn.functional.cross_entropy(prompt[:-1].float(), predicted[1:], reduction="none")
                for prompt, predicted in zip(logits, ids, strict=True)
            ]
        return torch.stack(found).cpu().numpy()

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
            return self.losses(tokens, _spliced_while_read(kept, sites, reconstruct))
        y_hat = _reconstructed(self.activations(tokens, sites.hook_names), sites, reconstruct)
        parts = y_hat.split([width for _, width in sites.write], dim=-1)
        return self.losses(tokens, {name: partial(_replaced, kept, part) for name, part in zip(sites.writes, parts, strict=True)})

    def zeroed_losses(
        self, tokens: Int[np.ndarray, "prompts context_size"], keep: Bool[np.ndarray, "prompts context_size"],
        hook_names: Sequence[str],
    ) -> Float[np.ndarray, "prompts predicted"]:  # fmt: skip
        """`losses` with zeros in place of the activations of all `hook_names`, at the positions in `keep`."""
        kept = self._mask(keep)
        return self.losses(tokens, dict.fromkeys(hook_names, lambda rows: rows.masked_fill(kept, 0)))

    def _mask(self, keep: Bool[np.ndarray, "prompts context_size"]) -> Bool[torch.Tensor, "prompts context_size 1"]:
        return torch.from_numpy(keep).to(self.device)[..., None]


def _replaced(kept: torch.Tensor, y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(kept, y_hat.to(y.dtype), y)


def _spliced_while_read(kept: torch.Tensor, sites: Sites, reconstruct: Reconstruct) -> Mapping[str, Edit]:
    """Edits that note what is read, and replace the one hook point that is written, which fires last."""
    seen: dict[str, torch.Tensor] = {}
    (written,) = sites.writes

    def read(rows: torch.Tensor, name: str) -> None:
        seen[name] = rows

    def write(rows: torch.Tensor) -> torch.Tensor:
        seen[written] = rows
        return _replaced(kept, _reconstructed(seen, sites, reconstruct), rows)

    return {name: partial(read, name=name) for name in sites.reads} | {written: write}


def _reconstructed(
    seen: Mapping[str, torch.Tensor], sites: Sites, reconstruct: Reconstruct
) -> Float[torch.Tensor, "prompts context_size d_write"]:
    """What the SAE writes at every position, from the activations at its hook points."""

    def rows(widths: Widths) -> jax.Array:
        return to_jax(torch.cat([seen[name] for name, _ in widths], dim=-1).flatten(0, 1))

    x = rows(sites.read)
    first = seen[sites.writes[0]]
    y_hat = to_torch(reconstruct(x, x if sites.is_autoencoder else rows(sites.write)))
    return y_hat.to(first.device).view(*first.shape[:2], sites.d_write)


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


def _load(spec: ModelSpec, device: str, roots: Roots) -> Any:
    from transformer_lens import TransformerBridge

    if is_path(spec.name):
        name = str(model_files.checked_folder(spec.name, roots)[0])
    else:
        name = spec.name
        model_files.check_hub_name(name)
        _check_hub(name)
    try:
        dtype = getattr(torch, spec.dtype)
        bridge = TransformerBridge.boot_transformers(name, device=device, dtype=dtype, revision=spec.revision)
    except MemoryError:
        raise
    except Exception as error:
        raise _not_loaded(spec.name, error) from error
    if spec.weight_processing == "compatibility":
        bridge.enable_compatibility_mode()
    return bridge


def _not_loaded(name: str, error: Exception) -> ModelNotFound:
    """What is wrong with a model: libraries raise all kinds of errors for files that are broken or not what they should be."""
    if "weights_only" in str(error):  # torch then tells its user to run what the file says
        message = f"cannot load {name}: its weights (*.bin) hold more than tensors, or are broken."
        return ModelNotFound(message, param="/stream/model/name", hint="Save them as safetensors.")
    return ModelNotFound(f"cannot load {name}: {str(error) or type(error).__name__}", param="/stream/model/name")


def _check_hub(name: str) -> None:
    """Raises ModelNotFound at once if a hub model is neither in the local cache nor reachable."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str) or is_offline():
        return
    try:
        socket.create_connection((hub_host(), 443), timeout=5).close()
    except OSError as error:
        hint = "Give a folder in Hugging Face format instead; its name starts with '/', '.' or '~'."
        message = f"{name} is not on this machine and {hub_host()} cannot be reached."
        raise ModelNotFound(message, param="/stream/model/name", hint=hint) from error
