"""What the latents of an SAE do on the demo's text, computed with Hugging Face and NumPy alone, the slow way."""

import json
import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import DEMO

LAYER = 2
MASK = (1 << 64) - 1


def read_rows(n_rows: int, context_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the held-out text in rows, and the residual stream behind block LAYER, in float64."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO / "model", torch_dtype=torch.float32)
    with lzma.open(DEMO / "text" / "test.jsonl.xz", "rt") as file:
        documents = [json.loads(line)["text"] for line in file]
    bos, flat, rows = tokenizer.bos_token_id, list[int](), list[list[int]]()
    for document in documents:
        flat += [bos, *tokenizer(document, add_special_tokens=False)["input_ids"]]
        while len(flat) >= context_size:
            rows.append(flat[:context_size])
            flat = flat[context_size:]
            flat = flat if not flat or flat[0] == bos else [bos, *flat]
    tokens = np.array(rows[:n_rows])
    with torch.inference_mode():
        passes = [model(torch.tensor(part), output_hidden_states=True) for part in np.array_split(tokens, 5)]
    return tokens, torch.cat([one.hidden_states[LAYER + 1] for one in passes]).double().numpy()


@dataclass(frozen=True)
class Brute:
    """All activations of an SAE [row, position, latent] in float64; those of BOS are 0, as they do not count."""

    tokens: np.ndarray
    acts: np.ndarray

    @classmethod
    def of(cls, sae: Any, tokens: np.ndarray, x: np.ndarray, bos: int = 0) -> "Brute":
        """Encodes rows."""
        z = x @ np.asarray(sae.W_enc, np.float64) + np.asarray(sae.b_enc, np.float64)
        acts = np.where(z > np.asarray(sae.threshold), np.maximum(z, 0), 0)
        if sae.k is not None:
            acts = np.where(acts >= np.sort(acts, axis=-1)[..., -sae.k, None], acts, 0)
        return cls(tokens, acts * (tokens != bos)[..., None])

    def passages(self, latent: int, width: int) -> np.ndarray:
        """The activations of a latent in each passage."""
        return self.acts[:, :, latent].reshape(-1, width)

    def strongest(self, latent: int, width: int, n: int) -> list[int]:
        """The passages with the largest activations, of those in which it fires."""
        peaks = self.passages(latent, width).max(axis=1)
        return [int(passage) for passage in np.argsort(-peaks, kind="stable")[:n] if peaks[passage] > 0]

    def of_quantiles(self, latent: int, width: int, per_quantile: int, seed: int) -> list[list[int]]:
        """The drawn passages of each tenth, the highest tenth first."""
        peaks = self.passages(latent, width).max(axis=1)
        fires = [int(passage) for passage in np.flatnonzero(peaks)]
        chosen = sorted(fires, key=lambda passage: (-mixed(seed, latent, passage), passage))[: 10 * per_quantile]
        chosen.sort(key=lambda passage: (-peaks[passage], passage))
        tenths = [index * 10 // len(chosen) for index in range(len(chosen))]
        return [[passage for passage, tenth in zip(chosen, tenths, strict=True) if tenth == wanted] for wanted in range(10)]


def mixed(seed: int, latent: int, passage: int) -> int:
    """The first 24 bits of what SplitMix64 makes of three numbers."""
    word = (seed ^ (latent << 32) ^ passage) + 0x9E3779B97F4A7C15 & MASK
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return (word ^ word >> 31) >> 40


def lens() -> tuple[np.ndarray, np.ndarray]:
    """The gain of the final norm, and the matrix of the tokens, [n_vocab, d_model]."""
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO / "model", torch_dtype=torch.float32)
    gain, tokens = model.transformer.ln_f.weight, model.lm_head.weight
    return gain.detach().double().numpy(), tokens.detach().double().numpy()
