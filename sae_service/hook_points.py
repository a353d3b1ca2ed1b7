"""The hook points that families of models have, known without torch."""

import difflib
import re

from sae_service.errors import InvalidSpec

LIKELY_SLIP = 0.8
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
RESIDUAL_SITES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
_IN_OUT = ("hook_in", "hook_out")
_NORM = (*_IN_OUT, "hook_normalized")
BLOCK_SITES = (
    *("hook_in", "hook_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
    *("hook_attn_in", "hook_attn_out", "hook_mlp_in", "hook_mlp_out"),
    *(f"attn.{site}" for site in (*_IN_OUT, "hook_q", "hook_k", "hook_v", "hook_z", "hook_result")),
    *("attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_hidden_states", "hook_q_input", "hook_k_input", "hook_v_input"),
    *(f"attn.{part}.{site}" for part in ("q", "k", "v", "o", "qkv") for site in _IN_OUT),
    *(f"{norm}.{site}" for norm in ("ln1", "ln2", "ln1_post", "ln2_post") for site in _NORM),
    *(f"mlp.{site}" for site in (*_IN_OUT, "hook_pre", "hook_post", "hook_pre_linear")),
    *(f"mlp.{part}.{site}" for part in ("in", "out", "gate") for site in _IN_OUT),
)
TOP_SITES = (
    *("hook_embed", "hook_pos_embed", "hook_unembed"),
    *(f"{part}.{site}" for part in ("embed", "pos_embed", "unembed") for site in _IN_OUT),
    *(f"ln_final.{site}" for site in _NORM),
)
NO_ROWS = ("hook_pattern", "hook_attn_scores", "hook_scale")
"""Sites whose values are not one vector of fixed width for each token."""


def check_hook(hook_name: str, n_layers: int | None, param: str) -> None:
    """Raises InvalidSpec for a layer that is not there, a site that cannot be trained on, or a likely slip.

    An unknown site that resembles none is let through: families of models differ, and the model itself decides.
    """
    block = BLOCK.fullmatch(hook_name)
    site, known, prefix = hook_name, TOP_SITES, ""
    if block:
        layer, site, known = int(block[1]), block[2], BLOCK_SITES
        prefix = f"blocks.{layer}."
        if n_layers is not None and layer >= n_layers:
            raise InvalidSpec(f"the model has no layer {layer}; its layers are 0 to {n_layers - 1}", param=param)
    if site.split(".")[-1] in NO_ROWS:
        raise InvalidSpec(f"{hook_name} is not one vector for each token, so no SAE can train on it", param=param)
    close = difflib.get_close_matches(site, known, n=3, cutoff=LIKELY_SLIP)
    if site not in known and close:
        names = ", ".join(prefix + name for name in close)
        raise InvalidSpec(f"there is no hook point {hook_name!r}. Close: {names}.", param=param)
