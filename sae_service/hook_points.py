"""The hook points that families of models have and lack, known without torch.

A family is what a model's configuration calls `model_type`. A test compares all of it with the library.
"""

import difflib
import re

from sae_service.errors import InvalidSpec

LIKELY_SLIP = 0.8
Families = tuple[str, ...] | None
"""Those of which something is true; None: all."""
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
RESIDUAL_SITES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
_IN_OUT = ("hook_in", "hook_out")
_NORM = (*_IN_OUT, "hook_normalized")
BLOCK_SITES = (
    *("hook_in", "hook_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
    *("hook_attn_out", "hook_mlp_in", "hook_mlp_out"),
    *(f"attn.{site}" for site in (*_IN_OUT, "hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k")),
    *(f"attn.{part}.{site}" for part in ("q", "k", "v", "o") for site in _IN_OUT),
    *(f"{norm}.{site}" for norm in ("ln1", "ln2", "ln1_post", "ln2_post") for site in _NORM),
    *(f"mlp.{site}" for site in (*_IN_OUT, "hook_pre", "hook_post", "hook_pre_linear")),
    *(f"mlp.{part}.{site}" for part in ("in", "out", "gate") for site in _IN_OUT),
)
TOP_SITES = (
    *("hook_embed", "hook_pos_embed", "hook_unembed"),
    *("embed.hook_out", "pos_embed.hook_out", "unembed.hook_in", "unembed.hook_out"),
    *(f"ln_final.{site}" for site in _NORM),
)
NO_ROWS = (
    *("hook_pattern", "hook_attn_scores", "hook_scale", "hook_cos", "hook_sin"),
    *("hook_router_scores", "hook_expert_weights", "hook_expert_indices"),
)
"""Ends of sites whose values are not one vector of fixed width for each token."""
_MOE = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
NO_ROWS_IN: dict[str, Families] = {
    "embed.hook_in": None,
    "pos_embed.hook_in": None,
    "ln2.hook_normalized": ("opt",),
    "mlp.gate.hook_in": _MOE,
    "mlp.gate.hook_out": _MOE,
}
"""Sites of which the same is true, and in which families."""
_HEADS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
_OTHER_ROTATION = ("falcon", "gpt_neox", "gptj", "phi3")
_ROTARY = (
    *("cohere", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "gpt_neox", "gpt_oss", "granite", "llama", "mistral"),
    *("mixtral", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("smollm3", "stablelm", "starcoder2"),
)
_ONE_PROJECTION = ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "phi3")
_THREE_PROJECTIONS = ("gpt_neo", "gptj", "mpt", "opt", "xglm", *(family for family in _ROTARY if family not in _ONE_PROJECTION))
SILENT: dict[str, tuple[str, Families]] = {
    "attn.hook_result": ("attn.hook_z", None),
    **{f"{part}{site}": ("hook_resid_pre", None) for part in ("", "attn.") for site in _HEADS},
    "attn.hook_hidden_states": ("attn.hook_in", _THREE_PROJECTIONS),
    "attn.qkv.hook_in": ("attn.hook_in", None),
    "attn.qkv.hook_out": ("attn.hook_q", None),
    "attn.hook_rot_q": ("attn.hook_q", _OTHER_ROTATION),
    "attn.hook_rot_k": ("attn.hook_k", _OTHER_ROTATION),
    "hook_mlp_in": ("mlp.hook_in", ("bloom", "cohere", "falcon", "gptj", "phi")),
    "hook_pos_embed": ("hook_embed", _ROTARY),
}
"""Sites that the library names and never computes: what to use instead, and in which families."""
INEXACT_FOLDING = ("gpt_oss", "qwen2_moe")
"""Families whose loss changes when the library folds their weights."""
FOLDING_FIELD = "/stream/model/weight_processing"


def not_exact() -> InvalidSpec:
    """The error for a model whose loss changes when its weights are folded."""
    message = "the weights of this model cannot be folded exactly: its losses would be others."
    return InvalidSpec(message, FOLDING_FIELD, 'Use "none".')


def check_folding(family: str | None) -> None:
    """Raises InvalidSpec for a family whose weights are not to be folded."""
    if family in INEXACT_FOLDING:
        raise not_exact()


def check_hook(hook_name: str, n_layers: int | None, family: str | None, param: str) -> None:
    """Raises InvalidSpec for a layer that is not there, a site that cannot be trained on, or a likely slip.

    An unknown site that resembles none is let through: families of models differ, and the model itself decides.
    """
    site, prefix = _parts(hook_name)
    if prefix and n_layers is not None and (layer := int(prefix.split(".")[1])) >= n_layers:
        raise InvalidSpec(f"the model has no layer {layer}; its layers are 0 to {n_layers - 1}", param=param)
    check_site(hook_name, family, param)
    known = BLOCK_SITES if prefix else TOP_SITES
    close = difflib.get_close_matches(site, known, n=3, cutoff=LIKELY_SLIP)
    if site not in known and close:
        names = ", ".join(prefix + name for name in close)
        raise InvalidSpec(f"there is no hook point {hook_name!r}. Close: {names}.", param=param)


def check_site(hook_name: str, family: str | None, param: str | None) -> None:
    """Raises InvalidSpec for a site that is never computed, or whose values are not one vector for each token."""
    site, prefix = _parts(hook_name)
    if site.split(".")[-1] in NO_ROWS or (site in NO_ROWS_IN and _is_among(family, NO_ROWS_IN[site])):
        raise InvalidSpec(f"{hook_name} is not one vector for each token, so no SAE can train on it", param=param)
    instead, families = SILENT.get(site, ("", ()))
    if _is_among(family, families):
        raise InvalidSpec(f"nothing is computed at {hook_name}.", param=param, hint=f"Use {prefix}{instead}.")


def _parts(hook_name: str) -> tuple[str, str]:
    """The site, and "blocks.<layer>." before it or nothing."""
    block = BLOCK.fullmatch(hook_name)
    return (block[2], f"blocks.{block[1]}.") if block else (hook_name, "")


def _is_among(family: str | None, families: Families) -> bool:
    return families is None or family in families


_ORDER = {
    **dict.fromkeys(("hook_in", "hook_resid_pre", "ln1", "attn"), 0),
    **dict.fromkeys(("hook_attn_out", "ln1_post"), 1),
    **dict.fromkeys(("hook_resid_mid", "ln2", "hook_mlp_in", "mlp"), 2),
    **dict.fromkeys(("hook_mlp_out", "ln2_post"), 3),
    **dict.fromkeys(("hook_resid_post", "hook_out"), 4),
}
"""How much of a block is in the residual stream where a site is read, or once it has been written, by the site's first word."""


def is_before(written: str, read: str) -> bool:
    """Whether what is added to the residual stream at one hook point of a block is in what is read at another one."""
    places = list[tuple[int, int]]()
    for name in (written, read):
        block = BLOCK.fullmatch(name)
        order = _ORDER.get(block[2].split(".")[0]) if block else None
        if block is None or order is None:
            return False
        places.append((int(block[1]), order))
    return places[0] <= places[1]
