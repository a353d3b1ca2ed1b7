"""Looks at some latents with SAEDashboard, in an environment of its own; started by latents.py.

    PYTHON tests/benchmarks/latents_peer.py ORDER

PYTHON has sae-dashboard, which wants TransformerLens 2. ORDER is JSON: model and sae (folders), layer, tokens (a file of rows),
n_latents, output. Prints what it has cost; what starting costs is told apart, as it comes once however many latents there are.
"""

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def loaded(folder: str) -> Any:
    """A model in the format of Hugging Face's GPT-2, as TransformerLens 2 has it."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    shape = given.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer, d_model=shape.n_embd, n_ctx=shape.n_positions, n_heads=shape.n_head,
        d_head=shape.n_embd // shape.n_head, d_vocab=shape.vocab_size, act_fn="gelu_new", eps=shape.layer_norm_epsilon,
        normalization_type="LN", device="cpu",
    )  # fmt: skip
    model = HookedSAETransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    weights = convert_gpt2_weights(given, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def main() -> None:
    """Looks, and writes the page."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    logging.disable(logging.WARNING)
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE

    began, model = time.monotonic(), loaded(order["model"])
    sae = SAE.load_from_disk(order["sae"])
    tokens = torch.from_numpy(np.load(order["tokens"]))
    chosen = np.random.default_rng(0).choice(sae.cfg.d_sae, order["n_latents"], replace=False).tolist()
    hook_name = f"blocks.{order['layer']}.hook_resid_post"
    used = resource.getrusage(resource.RUSAGE_SELF)
    config = SaeVisConfig(hook_point=hook_name, features=chosen, minibatch_size_features=order["n_latents"], ignore_tokens={0})
    found = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    save_feature_centric_vis(found, order["output"])
    now = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "n_latents": order["n_latents"], "tokens": tokens.numel(),
        "wall_s": time.monotonic() - began, "cpu_s": now.ru_utime + now.ru_stime, "start_cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": now.ru_maxrss / 1024, "n_bytes": Path(order["output"]).stat().st_size,
    }  # fmt: skip
    print("ANSWER", json.dumps(cost))  # noqa: T201


if __name__ == "__main__":
    main()
