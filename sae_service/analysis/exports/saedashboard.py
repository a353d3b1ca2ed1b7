"""The JSON of SAEDashboard's `SaeVisData.load_json`, which sae_vis has too: what its HTML pages are made of."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae_service.analysis.exports.groups import Group, centres, groups, heights
from sae_service.analysis.records import Bins, Latent, Passage


def pieces(about: Mapping[str, Any], latents: Iterable[Latent]) -> Iterator[str]:
    """One JSON object with the data of all latents, and their statistics behind it."""
    largest, densities = list[float](), list[float]()
    yield '{"feature_data_dict": {'
    for index, latent in enumerate(latents):
        largest.append(latent.largest)
        densities.append(latent.density)
        yield f'{", " if index else ""}"{latent.latent}": {json.dumps(feature(latent))}'
    unknown = dict.fromkeys(("skew", "kurtosis", "quantile_data", "quantiles", "ranges_and_precisions"), ())
    yield f'}}, "feature_stats": {json.dumps({"max": largest, "frac_nonzero": densities} | unknown)}}}\n'


def feature(latent: Latent) -> dict[str, Any]:
    """One latent."""
    return {
        "feature_tables_data": {
            "neuron_alignment_indices": [one.neuron for one in latent.aligned],
            "neuron_alignment_values": [one.weight for one in latent.aligned],
            "neuron_alignment_l1": [one.share for one in latent.aligned],
            "correlated_neurons_indices": [one.neuron for one in latent.neurons],
            "correlated_neurons_pearson": [one.correlation for one in latent.neurons],
            "correlated_neurons_cossim": [one.cosine for one in latent.neurons],
            "correlated_features_indices": [one.latent for one in latent.coactive],
            "correlated_features_pearson": [one.similarity for one in latent.coactive],
            "correlated_features_cossim": [one.cosine or 0 for one in latent.coactive],
        },
        "acts_histogram_data": _histogram(latent.histogram, f"ACTIVATIONS<br>DENSITY = {latent.density:.3%}"),
        "logits_table_data": {
            "bottom_token_ids": [one.id for one in latent.lowered],
            "bottom_logits": [one.score for one in latent.lowered],
            "top_token_ids": [one.id for one in latent.raised],
            "top_logits": [one.score for one in latent.raised],
        },
        "logits_histogram_data": _histogram(latent.logits, None),
        "sequence_data": {
            "seq_group_data": [
                {"title": _title(group), "seq_data": [_sequence(one) for one in group.passages]} for group in groups(latent)
            ]
        },
    }


def _histogram(bins: Bins | None, title: str | None) -> dict[str, Any]:
    values = centres(bins)
    return {"bar_heights": heights(bins), "bar_values": values, "tick_vals": values[:: max(1, len(values) // 5)], "title": title}


def _title(group: Group) -> str:
    if group.tenth is None:
        return f"TOP ACTIVATIONS<br>MAX = {group.highest:.3f}"
    return f"INTERVAL {group.lowest:.3f} - {group.highest:.3f}<br>CONTAINS 10.000%"


def _sequence(one: Passage) -> dict[str, Any]:
    n_tokens = len(one.ids)
    return {
        "original_index": one.passage,
        "qualifying_token_index": one.position,
        "token_ids": list(one.ids),
        "feat_acts": list(one.activations),
        "loss_contribution": [0.0] * n_tokens,
        "token_logits": [0.0] * n_tokens,
        **{name: [()] * n_tokens for name in ("top_token_ids", "top_logits", "bottom_token_ids", "bottom_logits")},
    }
