"""Small models of many families with random weights, in folders as transformers writes them, and the demo's tokenizer."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.conftest import DEMO

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_TOKENS = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_LLAMA = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, **_TOKENS,
}  # fmt: skip
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, **_TOKENS}
_HEADS, _EXPERTS = {"head_dim": 16}, {"num_experts": 4, "num_experts_per_tok": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **_TOKENS}),
    "cohere": ("Cohere", _LLAMA),
    "falcon": ("Falcon", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **_TOKENS}),
    "gemma": ("Gemma", {**_LLAMA, **_HEADS}),
    "gemma2": ("Gemma2", {**_LLAMA, **_HEADS}),
    "gemma3_text": ("Gemma3Text", {**_LLAMA, **_HEADS}),
    "glm": ("Glm", {**_LLAMA, **_HEADS}),
    "gpt2": ("GPT2", _GPT2),
    "gpt_bigcode": ("GPTBigCode", _GPT2),
    "gpt_neo": ("GPTNeo", {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 128, "intermediate_size": 96, **_TOKENS,
    }),
    "gpt_neox": ("GPTNeoX", {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}),
    "gpt_oss": ("GptOss", {**_LLAMA, **_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gptj": ("GPTJ", {**_GPT2, "rotary_dim": 8}),
    "granite": ("Granite", _LLAMA),
    "llama": ("Llama", _LLAMA),
    "mistral": ("Mistral", _LLAMA),
    "mixtral": ("Mixtral", {**_LLAMA, "num_local_experts": 4}),
    "mpt": ("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, **_TOKENS}),
    "nemotron": ("Nemotron", _LLAMA),
    "olmo": ("Olmo", _LLAMA),
    "olmo2": ("Olmo2", _LLAMA),
    "olmo3": ("Olmo3", _LLAMA),
    "olmoe": ("Olmoe", {**_LLAMA, **_EXPERTS}),
    "opt": ("OPT", {
        "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
        "word_embed_proj_dim": 64, **_TOKENS,
    }),
    "phi": ("Phi", {**_LLAMA, "num_key_value_heads": 4}),
    "phi3": ("Phi3", _LLAMA),
    "qwen2": ("Qwen2", _LLAMA),
    "qwen2_moe": ("Qwen2Moe", {**_LLAMA, **_EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}),
    "qwen3": ("Qwen3", {**_LLAMA, **_HEADS}),
    "qwen3_moe": ("Qwen3Moe", {**_LLAMA, **_HEADS, **_EXPERTS, "moe_intermediate_size": 32}),
    "smollm3": ("SmolLM3", _LLAMA),
    "stablelm": ("StableLm", _LLAMA),
    "starcoder2": ("Starcoder2", _LLAMA),
    "xglm": ("XGLM", {
        "d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 128, **_TOKENS,
    }),
}  # fmt: skip
"""The name of each family's config class and its arguments, by `model_type`."""


class Families:
    """Makes each model when it is asked for, once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = cache(self.path)

    def path(self, family: str) -> Path:
        """The folder of a model."""
        name, arguments = CONFIGS[family]
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**arguments))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        folder = self._folder / family
        model.save_pretrained(folder)
        for file in TOKENIZER:
            shutil.copy(DEMO / "model" / file, folder)
        return folder

    def without_tokenizer(self, family: str, folder: Path) -> Path:
        """A copy of a model in `folder` that has no tokenizer."""
        return shutil.copytree(self.path(family), folder / family, ignore=shutil.ignore_patterns(*TOKENIZER))

    def with_tokenizer(self, family: str, folder: Path, config: dict[str, str]) -> Path:
        """A copy of a model in `folder` whose tokenizer is described by `config`."""
        copied = shutil.copytree(self.path(family), folder / family)
        (copied / "tokenizer_config.json").write_text(json.dumps(config))
        return copied
