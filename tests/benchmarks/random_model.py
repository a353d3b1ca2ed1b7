"""A language model of any size with random weights, which reads as fast as a trained one."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_service.demo import show

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write(folder: Path, width: int, n_layers: int) -> None:
    """Writes a model of the Llama family with the demo's tokenizer: heads 256 wide, or 16 in a small one."""
    demo = Path(show.spec()["stream"]["model"]["name"])
    head = 256 if width % 256 == 0 and width >= 1024 else 16
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_vocabulary(demo), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=n_layers,
        num_attention_heads=width // head, num_key_value_heads=width // head, max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER:
        if (demo / name).exists():
            shutil.copy(demo / name, folder / name)


def n_weights(width: int, n_layers: int) -> int:
    """In the matrices of so many layers: four of the attention, and three of the MLP, which is four times as wide."""
    return 16 * width**2 * n_layers


def _vocabulary(model: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model).vocab_size
