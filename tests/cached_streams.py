"""A job's stream of rows with an activation cache, read as training does."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_service.activations import cache_writer, source
from sae_service.activations.buffer import FillStart
from sae_service.activations.model import LanguageModel
from sae_service.activations.source import Source
from sae_service.spec import JobSpec
from sae_service.storage.cache import ActivationCache
from sae_service.storage.objects import Storage
from tests.small_jobs import small_job

LIMIT = 1 << 30
HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_mlp_out")


one_model = cache(LanguageModel)
"""Most of a reader's time would go into loading the same model."""


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three batches of prompts (512 rows of 128 float32 each, less what is left out), and a model that is loaded once."""
    monkeypatch.setattr(source, "LanguageModel", one_model)
    monkeypatch.setattr(cache_writer, "CHUNK_BYTES", 0)
    monkeypatch.setattr(cache_writer, "LEAST_BYTES", 5 << 17)


def opened(folder: Path, limit: int = LIMIT, project: str | None = None) -> ActivationCache:
    return ActivationCache(Storage(folder.as_uri()), limit, project)


def spec(hooks: tuple[str, ...] = HOOKS, **stream: Any) -> JobSpec:
    job = small_job(**stream)
    sae = {"architecture": {"kind": "standard", "d_sae": 64}, "optimizer": {"lr": 1e-3, "lr_warm_up": 0.1}}
    job["saes"] = [{"name": f"at_{index}", "hook_name": hook, **sae} for index, hook in enumerate(hooks)]
    return JobSpec.model_validate(job)


class Reader:
    """Reads rows of a job's stream as its training does, in fills of 1000 rows, and notes what is said."""

    def __init__(self, cache: ActivationCache | None, mode: str, hooks: tuple[str, ...] = HOOKS, **stream: Any) -> None:
        self.source = Source(spec(hooks, cache=mode, **stream), "cpu")
        self.source.open_cache(cache, lambda: False)
        self.events: list[tuple[str, str]] = []

    def read(
        self, n_fills: int, start: FillStart | None = None, before: Callable[[int], None] = lambda index: None
    ) -> tuple[dict[str, bytes], FillStart]:
        """The bytes of the rows of each hook point, and where the next fill starts."""
        start = start or FillStart()
        harvest, parts = self.source.harvest(start), []
        for index in range(n_fills):
            before(index)
            rows, start = harvest.fill(1000)
            parts.append({name: np.asarray(found) for name, found in rows.items()})
        self.source.close(lambda *event: self.events.append(event))
        return {name: b"".join(part[name].tobytes() for part in parts) for name in parts[0]}, start

    @property
    def share(self) -> str:
        """The share of the rows that came from the cache."""
        return self.events[-1][1].split()[0]

    @property
    def warnings(self) -> list[str]:
        return [said for level, said in self.events if level == "warning"]


@cache
def live_rows() -> tuple[dict[str, bytes], FillStart]:
    """Six fills of the model's own rows, and where the next one starts."""
    return Reader(None, "off").read(6)


def chunks(folder: Path, hook: str = "*") -> list[Path]:
    """The files of the chunks of a hook point, in the order of the text; `folder` is around the cache."""
    return sorted(folder.glob(f"cache/*/{hook}/float32/*"), key=lambda path: [int(n) for n in path.name.split("-")[0].split(".")])
