"""The model's forward pass: a plain one of transformers with a hook and an early stop, the bridge's, and ours.

    python -m tests.benchmarks.model_pass [--models demo ...] [--tokens 2048 4096 ...] [--rounds 7] [--cores 0] [--output FOLDER]

The three take turns on the same tokens and the same core; what is counted is CPU-seconds of one million tokens, of which the
median over the rounds is kept. The models but the demo's have random weights and one layer more
than is needed: after the last one the bridge goes on to the logits.
Writes model_pass.md into the folder.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from sae_service.activations.model import LanguageModel
from sae_service.spec import ModelSpec

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "sae_service" / "demo" / "model"
CONTEXT, LAYER = 128, 2
SHAPES: dict[str, Any] = {
    "SmolLM2-135M's shape, 4 layers": transformers.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152
    ),
    "GPT-2 small's shape, 4 layers": transformers.GPT2Config(n_layer=4),
}
MODELS = {"demo": None, "smollm2": "SmolLM2-135M's shape, 4 layers", "gpt2": "GPT-2 small's shape, 4 layers"}
PLAIN, BRIDGE, OURS = "transformers", "bridge", "ours"


class Reached(Exception):
    """The hook has what is wanted."""


def plain(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A forward pass of transformers to the end of a layer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: list[torch.Tensor] = []

    def hook(_module: Any, _args: Any, output: Any) -> None:
        found[:] = [output[0] if isinstance(output, tuple) else output]
        raise Reached

    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    layers[LAYER].register_forward_hook(hook)

    def read(ids: torch.Tensor) -> torch.Tensor:
        with suppress(Reached):
            model(input_ids=ids, use_cache=False)
        return found[0]

    return read


def contenders(folder: Path) -> dict[str, Callable[[np.ndarray[Any, Any]], torch.Tensor]]:
    """The rows of a hook point, by who reads them."""
    model, name, published = LanguageModel(ModelSpec(name=str(folder)), "cpu"), f"blocks.{LAYER}.hook_resid_post", plain(folder)

    def bridge(tokens: np.ndarray[Any, Any]) -> torch.Tensor:
        ids = torch.from_numpy(tokens).long()
        return model.bridge.run_with_cache(ids, names_filter=[name], stop_at_layer=LAYER + 1, return_type=None)[1][name]

    return {
        PLAIN: lambda tokens: published(torch.from_numpy(tokens).long()),
        BRIDGE: bridge,
        OURS: lambda tokens: model.activations(tokens, (name,))[name],
    }


def measured(folder: Path, sizes: list[int], n_rounds: int) -> dict[int, dict[str, float]]:
    """CPU-seconds of a million tokens, by the tokens of a pass and whose it is. Raises AssertionError if the rows differ."""
    found: dict[int, dict[str, float]] = {}
    readers = contenders(folder)
    for size in sizes:
        tokens = np.random.default_rng(0).integers(0, 2048, (size // CONTEXT, CONTEXT), dtype=np.int32)
        rows = {name: read(tokens) for name, read in readers.items()}
        for name in rows:
            torch.testing.assert_close(rows[name], rows[PLAIN], rtol=1e-4, atol=1e-4)
        taken: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(n_rounds):
            for name, read in readers.items():
                began = time.process_time()
                read(tokens)
                taken[name].append((time.process_time() - began) * 1e6 / tokens.size)
        found[size] = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return found


def main() -> None:
    """Measures, and writes what has been measured so far after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, arguments.cores)
    torch.set_num_threads(len(arguments.cores))
    lines = [
        "# The model's forward pass\n",
        f"CPU-seconds of a million tokens in rows of {CONTEXT}, read after layer {LAYER}; {len(arguments.cores)} core(s), "
        f"medians of {arguments.rounds}.\n",
        "| model | tokens in a pass | ours / transformers | bridge / transformers | transformers | bridge | ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as made, torch.inference_mode():
            folder, shape = DEMO, MODELS[name]
            if shape is not None:
                folder = Path(made)
                torch.manual_seed(0)
                transformers.AutoModelForCausalLM.from_config(SHAPES[shape]).save_pretrained(folder)
            for size, seconds in measured(folder, arguments.tokens, arguments.rounds).items():
                ratios = [f"{seconds[who] / seconds[PLAIN]:.2f}" for who in (OURS, BRIDGE)]
                figures = [f"{seconds[who]:.1f}" for who in (PLAIN, BRIDGE, OURS)]
                lines.append("| " + " | ".join([shape or "the demo's", str(size), *ratios, *figures]) + " |")
                print(lines[-1], flush=True)  # noqa: T201
                (arguments.output / "model_pass.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
