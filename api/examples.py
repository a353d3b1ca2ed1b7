"""Examples for the interface's description."""

from typing import Any

_STREAM: dict[str, Any] = {
    "model": {"name": "gpt2"},
    "dataset": {"path": "monology/pile-uncopyrighted"},
    "context_size": 1024,
    "tokens": 500_000_000,
    "batch": 4096,
}

JOB_EXAMPLES: dict[str, Any] = {
    "one": {
        "summary": "One JumpReLU SAE",
        "value": {
            "stream": _STREAM,
            "saes": [{"hook_name": "blocks.8.hook_resid_pre", "architecture": {"kind": "jumprelu", "d_sae": 24_576}}],
        },
    },
    "several": {
        "summary": "Two SAEs on two hook points from one forward pass",
        "value": {
            "stream": _STREAM,
            "saes": [
                {
                    "name": "resid-8-gated",
                    "hook_name": "blocks.8.hook_resid_pre",
                    "architecture": {"kind": "gated", "d_sae": 16_384, "l1_coefficient": 0.3},
                },
                {
                    "name": "mlp-8-standard",
                    "hook_name": "blocks.8.hook_mlp_out",
                    "architecture": {"kind": "standard", "d_sae": 16_384},
                    "optimizer": {"lr": 1e-4},
                },
            ],
            "metadata": {"project": "layer-8"},
        },
    },
    "statistics": {
        "summary": "What a model's activations are like",
        "value": {
            "kind": "statistics",
            "stream": {"model": {"name": "gpt2"}, "dataset": {"path": "monology/pile-uncopyrighted"}, "context_size": 1024},
            "hook_names": ["blocks.8.hook_resid_pre", "blocks.8.hook_mlp_out"],
            "tokens": 1_000_000,
        },
    },
    "steering": {
        "summary": "What a model says when a latent is added to its activations",
        "value": {
            "kind": "steering",
            "job": "job_019b0c1d2e3f4a5b6c7d8e",
            "saes": ["resid-8-gated"],
            "latent": 4711,
            "prompts": ["The capital of France is"],
            "logits": [" Paris"],
            "contrast": [" Paris", " Rome"],
            "continuations": {"coefficients": [0, 8]},
        },
    },
    "attribution": {
        "summary": "What each latent contributes to the difference of two logits",
        "value": {
            "kind": "attribution",
            "job": "job_019b0c1d2e3f4a5b6c7d8e",
            "prompts": ["The capital of France is"],
            "contrasts": [[" Paris", " Rome"]],
        },
    },
    "latents": {
        "summary": "What the latents of a finished job's SAEs do",
        "value": {"kind": "latents", "job": "job_019b0c1d2e3f4a5b6c7d8e", "saes": ["resid-8-gated"], "tokens": 10_000_000},
    },
}
