"""The files of a job that has measured a model: a record with what is told of it, and columns with what is longer."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from sae_service.activations import observed
from sae_service.activations.model import LanguageModel
from sae_service.activations.tokenizer import strings
from sae_service.analysis.statistics import of_hooks
from sae_service.analysis.statistics.advice import advice
from sae_service.analysis.statistics.files import COLUMNS, RECORD
from sae_service.analysis.statistics.measuring import Measured
from sae_service.analysis.statistics.of_hooks import norm_figures
from sae_service.analysis.statistics.records import HeadFigures, Layer, Statistics
from sae_service.analysis.statistics.weights import ov_norms
from sae_service.spec import StreamSpec
from sae_service.storage import arrays
from sae_service.storage.artifacts import finite_or_null
from sae_service.storage.objects import Content


def to_files(
    found: Measured, stream: StreamSpec, model: LanguageModel, alive: Callable[[], None]
) -> dict[str, Content]:
    """The two files.

    Args:
        alive: called now and then.
    """
    ov = dict[int, tuple[np.ndarray, np.ndarray]]()
    for layer in range(model.bridge.cfg.n_layers):
        alive()
        if (weights := observed.ov_weights(model, layer)) is not None:
            ov[layer] = ov_norms(*weights)
    whole = _statistics(found, stream, model, ov)
    content = finite_or_null(whole.model_dump(mode="json"))
    return {RECORD: json.dumps(content).encode(), COLUMNS: arrays.to_parts(_columns(found, ov))}


def _statistics(found: Measured, stream: StreamSpec, model: LanguageModel, ov: dict[int, Any]) -> Statistics:
    spec, dataset = stream.text_source
    vocabulary = strings(model.tokenizer, model.n_vocab)
    excluded = model.excluded_tokens(stream.exclude)
    hooks = tuple(of_hooks.statistics(name, found, vocabulary, excluded) for name in found.hooks)
    n_attended = int(found.attention.n[0])
    even = [float(value / n_attended) for value in found.attention.even] if n_attended else [None, None]
    return Statistics(
        model=spec.name, dataset=dataset.path, dtype=spec.dtype, context_size=stream.context_size, exclude=stream.exclude,
        tokens=found.n_prompts * stream.context_size, rows=next(iter(found.norms.values())).n, attention_rows=n_attended,
        even_distance=even[0], even_entropy=even[1], cut_lengths=tuple(found.cuts.lengths), cut_positions=len(found.cuts.places),
        embedding=norm_figures(found.norms.get("blocks.0.hook_resid_pre")),
        layers=tuple(_layer(layer, found, ov.get(layer)) for layer in range(model.bridge.cfg.n_layers)),
        hook_points=hooks, advice=tuple(advice(hooks, stream)),
    )  # fmt: skip


def _layer(layer: int, found: Measured, ov: tuple[np.ndarray, np.ndarray] | None) -> Layer:
    after, attention, mlp = (
        norm_figures(found.norms.get(f"blocks.{layer}.{site}"))
        for site in ("hook_resid_post", "hook_attn_out", "hook_mlp_out")
    )
    before = norm_figures(found.norms.get(f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"))
    growth = (None, None)
    if after is not None and before is not None and before.mean and before.quantiles["0.5"]:
        growth = after.mean / before.mean, after.quantiles["0.5"] / before.quantiles["0.5"]
    heads = {name: tuple(map(float, values)) for name, values in found.attention.means(layer).items()}
    frobenius, spectral = (None, None) if ov is None else (tuple(map(float, values)) for values in ov)
    name = f"blocks.{layer}.hook_resid_post"
    has_cuts = len(found.cuts.places) and name in found.cuts.hook_names
    return Layer(
        layer=layer, residual=after, growth=growth[0], median_growth=growth[1], attention=attention, mlp=mlp,
        heads=HeadFigures(
            ov_frobenius=frobenius, ov_spectral=spectral, **{figure: heads.get(figure) for figure in observed.FIGURES}
        ),
        cut_cosines=tuple(map(float, found.cuts.means(name))) if has_cuts else None,
    )  # fmt: skip


def _columns(found: Measured, ov: dict[int, Any]) -> dict[str, np.ndarray]:
    """What is longer: by position, by dimension, by head."""
    columns: dict[str, np.ndarray] = {}
    for name, tally in found.norms.items():
        columns |= {
            f"{name}/rows_by_position": tally.counts,
            f"{name}/mean_norm_by_position": tally.sums / np.maximum(tally.counts, 1),
            f"{name}/norm_quantiles": np.array([tally.quantiles(group=group) for group in range(len(tally.starts))]),
        }
        columns[f"{name}/position_groups"] = np.array(tally.starts)
    for name, tally in found.hooks.items():
        moments = tally.moments
        columns |= {
            f"{name}/{part}": getattr(moments, part) for part in ("mean", "variance", "skewness", "kurtosis")
        }
        columns[f"{name}/outliers_by_position"] = tally.outliers
    for layer, (frobenius, spectral) in ov.items():
        columns |= {f"blocks.{layer}/ov_frobenius": frobenius, f"blocks.{layer}/ov_spectral": spectral}
    for layer in found.attention.layers:
        columns |= {f"blocks.{layer}/attention_{figure}": values for figure, values in found.attention.means(layer).items()}
    return columns | {"cut_places": found.cuts.places, "cut_cosines": found.cuts.cosines}
