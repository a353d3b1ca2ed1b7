"""The median norms of the first rows of text, by which outliers are told."""

from collections.abc import Callable

import numpy as np

from sae_service.activations import observed
from sae_service.activations import passages as text
from sae_service.activations.buffer import Reading
from sae_service.activations.tokens import Cursor
from sae_service.analysis.statistics.norms import norms_of
from sae_service.errors import InvalidSpec


def medians_of(source: Reading, hook_names: list[str], alive: Callable[[], None]) -> dict[str, float]:
    """The median norm of the rows that count among the first, at each hook point, as `passages.norm_limits` takes it.

    Args:
        alive: called now and then.

    Raises:
        DataNotFound, InvalidSpec: the text cannot be read, nothing of it counts, or no row is finite.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in hook_names}
    n_rows = 0
    for prompts, _ in source.prompts(Cursor()):

        def look(name: str, rows: np.ndarray, keep: np.ndarray = prompts.trained) -> None:
            alive()
            found[name].append(norms_of(rows)[keep])

        observed.rows(source.model, prompts.tokens, hook_names, look)
        n_rows += int(prompts.trained.sum())
        if n_rows >= text.MEDIAN_ROWS:
            break
    if not n_rows:
        raise text.too_little(source)
    return {name: _median(name, np.concatenate(norms)) for name, norms in found.items()}


def _median(name: str, norms: np.ndarray) -> float:
    """The median of finite norms. Raises InvalidSpec if there are none."""
    finite = norms[np.isfinite(norms)]
    if not len(finite):
        raise InvalidSpec(f"no row at {name} is finite in this dtype.", "/stream/model/dtype", "Use float32.")
    return float(np.median(finite))
