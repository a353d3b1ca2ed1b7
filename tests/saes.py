"""SAEs with random weights, for tests of what is written and read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_service.architectures import ARCHITECTURES
from sae_service.formats.file_format import Description
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites
from sae_service.storage.objects import Content
from tests.planted import fresh, steps

KINDS = ("relu", "jumprelu", "topk")
TRANSCODER = Sites((("blocks.3.ln2.hook_normalized", 6),), (("blocks.3.hook_mlp_out", 5),))
CROSSCODER = Sites((("blocks.1.hook_resid_post", 2), ("blocks.2.hook_resid_post", 4)), (("blocks.3.hook_mlp_out", 5),))


def described(*reads: str, writes: tuple[str, ...] | None = None) -> Description:
    """What a file says of an SAE of these hook points."""
    return Description(reads, reads if writes is None else writes, "gpt2", "text", 128, "topk", {"kind": "topk", "d_sae": 24})


DESCRIPTION = described("blocks.3.hook_resid_pre")


def of_sites(sites: Sites) -> Description:
    """What a file says of an SAE of these sites."""
    return described(*(name for name, _ in sites.read), writes=tuple(name for name, _ in sites.write))


def random_sae(kind: str, d_in: int = 6, d_sae: int = 24, seed: int = 0) -> InferenceSAE:
    """An SAE with random biases and decoder rows of norm 1."""
    return _random(kind, d_in, d_in, d_sae, np.random.default_rng(seed))


def random_transcoder(kind: str, sites: Sites = TRANSCODER, d_sae: int = 24, seed: int = 0, skip: bool = False) -> InferenceSAE:
    """The same with sites, which need not read what they write, and with a random bypass if it has one."""
    random = np.random.default_rng(seed)
    sae = _random(kind, sites.d_read, sites.d_write, d_sae, random).replace(sites=sites)
    return sae.replace(W_skip=random.normal(size=(sites.d_read, sites.d_write)).astype(np.float32)) if skip else sae


def _random(kind: str, d_read: int, d_write: int, d_sae: int, random: np.random.Generator) -> InferenceSAE:
    W_dec = random.normal(size=(d_sae, d_write)) + 1e-3
    parts: dict[str, Any] = {
        "W_enc": random.normal(size=(d_read, d_sae)),
        "b_enc": random.normal(scale=0.3, size=d_sae),
        "W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True),
        "b_dec": random.normal(size=d_write),
        "threshold": random.uniform(-0.2, 1, d_sae) if kind == "jumprelu" else np.zeros(d_sae),
    }
    k = int(random.integers(1, d_sae + 1)) if kind == "topk" else None
    return InferenceSAE(**{name: part.astype(np.float32) for name, part in parts.items()}, k=k)


def every_architecture() -> dict[str, InferenceSAE]:
    """An SAE of each architecture after a few steps of training, by its kind, and of JumpReLU with a target; d_in is 16."""
    chosen = dict(ARCHITECTURES)
    jumprelu = chosen["jumprelu"]
    targeted = jumprelu.config.model_validate({"d_sae": 64, "target_l0": 4, "bandwidth": 0.1, "initial_threshold": 0.1})
    chosen["jumprelu_target"] = dataclasses.replace(jumprelu, example=targeted)
    return {
        kind: architecture.export(architecture.example, steps(architecture, fresh(architecture), 0, 20).parameters)
        for kind, architecture in chosen.items()
    }


def rows(d_in: int = 6, n_rows: int = 50, seed: int = 1) -> np.ndarray:
    """Rows to encode."""
    return np.random.default_rng(seed).normal(scale=2, size=(n_rows, d_in)).astype(np.float32)


def results(sae: InferenceSAE, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The latents of rows and what they write."""
    acts = sae.encode(x)
    return np.array(acts), np.array(sae.decode(acts, x))


def results_in_float64(sae: InferenceSAE, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Latents and what they write without the rounding of float32, so that what differs is what the weights mean."""
    W_enc, b_enc, W_dec, b_dec, threshold = (
        np.asarray(value, np.float64) for value in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)
    )
    z = x.astype(np.float64) @ W_enc + b_enc
    acts = np.where(z > threshold, np.maximum(z, 0), 0)
    if sae.k is not None:
        acts = np.where(acts >= np.sort(acts, axis=1)[:, -sae.k, None], acts, 0)
    bypass = 0 if sae.W_skip is None else x.astype(np.float64) @ np.asarray(sae.W_skip, np.float64)
    return acts, acts @ W_dec + b_dec + bypass


def in_memory(files: Mapping[str, Content]) -> dict[str, bytes]:
    """The files as a reader gets them."""
    return {name: content if isinstance(content, bytes) else b"".join(content.pieces()) for name, content in files.items()}
