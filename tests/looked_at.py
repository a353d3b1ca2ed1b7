"""SAEs with directions out of the demo's text, in folders, and jobs that look at their latents in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae_service.activations import passages as text
from sae_service.activations.model import LanguageModel
from sae_service.activations.tokens import Cursor
from sae_service.analysis import latents_job
from sae_service.analysis.results import Table
from sae_service.formats import saelens
from sae_service.readable import EVERYWHERE
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import at
from sae_service.spec import LatentsSpec, StreamSpec
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.conftest import DEMO
from tests.recorder import Recorder
from tests.saes import described

HOOK = "blocks.2.hook_resid_post"
STREAM: dict[str, Any] = {
    "model": {"name": str(DEMO / "model")}, "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
    "context_size": 64, "prompts": 8,
}  # fmt: skip


def rows_of_text(n_rows: int = 2000, hook_name: str = HOOK) -> np.ndarray:
    """Activations at a hook point."""
    stream = StreamSpec.model_validate({**STREAM, "tokens": 4096, "batch": 1})
    model = LanguageModel(stream.text_source[0], "cpu")
    source = text.reading(stream, "held_out", model, (hook_name,), EVERYWHERE)
    return np.concatenate([batch.rows[hook_name] for batch in text.passages(source, Cursor(), 1 + n_rows // 60, {})])[:n_rows]


def sparse_sae(x: np.ndarray, d_sae: int = 96, k: int | None = None, seed: int = 0, l0: float = 8) -> InferenceSAE:
    """An SAE whose latents have the directions of single rows, and fire about as rarely as those of a trained one."""
    random, mean = np.random.default_rng(seed), x.mean(axis=0)
    W = x[random.integers(0, len(x), d_sae)] - mean + 0.3 * x.std() * random.normal(size=(d_sae, x.shape[1]))
    W = (W / np.linalg.norm(W, axis=1, keepdims=True)).astype(np.float32)
    threshold = np.quantile((x - mean) @ W.T, 1 - l0 / d_sae, axis=0)
    threshold = np.zeros(d_sae) if k else np.maximum(threshold * random.uniform(0.8, 1.6, d_sae), 0)
    threshold[0] = 0 if k else 1e9  # one that never fires
    return InferenceSAE(W.T.copy(), -(mean @ W.T), W, mean, threshold.astype(np.float32), k=k, sites=at(HOOK, x.shape[1]))


def in_folder(folder: Path, sae: InferenceSAE, hook_name: str = HOOK) -> dict[str, str]:
    """Writes an SAE, and says how a job names it."""
    folder.mkdir(parents=True)
    for name, content in saelens.to_files(sae, described(hook_name)).items():
        (folder / name).write_bytes(content)
    return {"path": str(folder), "hook_name": hook_name, "name": folder.name}


def latents_spec(*folders: dict[str, str], **fields: Any) -> LatentsSpec:
    """A job that looks at SAEs in folders."""
    return LatentsSpec.model_validate({"kind": "latents", "folders": folders, "stream": STREAM, "tokens": 6000} | fields)


def looked(
    folder: Path, job: LatentsSpec, should_stop: Callable[[], bool] = lambda: False, resume_from: tuple[str, ...] = (),
    begin_with: str | None = None,
) -> tuple[Recorder, dict[str, Table]]:  # fmt: skip
    """Carries out a job; returns its news and the columns of each SAE (none if it was stopped)."""
    recorder, storage = Recorder(), Storage(folder.as_uri())
    around = Surroundings(storage, "jobs/look", recorder, should_stop, resume_from, begin_with)
    final = latents_job.run(job, around)
    if final is None:
        return recorder, {}
    names = dict.fromkeys(entry["path"].split("/")[1] for entry in final.files)  # pyright: ignore[reportAttributeAccessIssue]
    return recorder, {name: Table(storage, f"{final.key}/saes/{name}") for name in names}
