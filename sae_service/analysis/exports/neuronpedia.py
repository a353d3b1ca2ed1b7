"""The file of a batch of features from which Neuronpedia imports dashboards, as SAEDashboard 0.7 and 0.8 write it.

Its `correlated_*_l1` fields hold cosines there, and so they do here.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae_service.analysis.exports.groups import Group, centres, groups, heights, rounded
from sae_service.analysis.records import Latent

TENTH = 0.1


def pieces(about: Mapping[str, Any], latents: Iterable[Latent]) -> Iterator[str]:
    """One JSON object with all latents as its features."""
    layer = re.match(r"blocks\.(\d+)\.", about["reads"][0])
    head = {
        "model_id": about["model"].rstrip("/").split("/")[-1],
        "layer": int(layer[1]) if layer else 0,
        "sae_set": about["name"],
        "sae_id_suffix": "",
    }
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "features": ['
    for index, latent in enumerate(latents):
        yield (", " if index else "") + json.dumps(feature(about, latent), ensure_ascii=False)
    yield "]}\n"


def feature(about: Mapping[str, Any], latent: Latent) -> dict[str, Any]:
    """One latent."""
    return {
        "feature_index": latent.latent,
        "neuron_alignment_indices": [one.neuron for one in latent.aligned],
        "neuron_alignment_values": rounded(one.weight for one in latent.aligned),
        "neuron_alignment_l1": rounded(one.share for one in latent.aligned),
        "correlated_neurons_indices": [one.neuron for one in latent.neurons],
        "correlated_neurons_pearson": rounded(one.correlation for one in latent.neurons),
        "correlated_neurons_l1": rounded(one.cosine for one in latent.neurons),
        "correlated_features_indices": [one.latent for one in latent.coactive],
        "correlated_features_pearson": rounded(one.similarity for one in latent.coactive),
        "correlated_features_l1": rounded(one.cosine or 0 for one in latent.coactive),
        "neg_str": [one.token for one in latent.lowered],
        "neg_values": rounded(one.score for one in latent.lowered),
        "pos_str": [one.token for one in latent.raised],
        "pos_values": rounded(one.score for one in latent.raised),
        "frac_nonzero": latent.density,
        "freq_hist_data_bar_values": centres(latent.histogram),
        "freq_hist_data_bar_heights": heights(latent.histogram),
        "logits_hist_data_bar_heights": heights(latent.logits),
        "logits_hist_data_bar_values": centres(latent.logits),
        "n_prompts_total": about["n_prompts"],
        "n_tokens_in_prompt": about["context_size"],
        "dataset": about["dataset"]["path"],
        "decoder_weights_dist": [],
        "activations": [activation for group in groups(latent) for activation in _activations(group)],
    }


def _activations(group: Group) -> Iterator[dict[str, Any]]:
    """The passages of a group; the strongest ones are marked by bounds of -1."""
    is_best = group.tenth is None
    for one in group.passages:
        yield {
            "bin_min": -1 if is_best else group.lowest,
            "bin_max": group.highest,
            "bin_contains": -1 if is_best else TENTH,
            "qualifying_token_index": one.position,
            "tokens": list(one.tokens),
            "values": rounded(one.activations),
        }
