"""What a reader needs to make an SAE again: the spec, which model and text it was, which code."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_service import __version__
from sae_service.readable import EVERYWHERE, Roots
from sae_service.spec import StreamSpec, is_path

PACKAGES = ("jax", "torch", "transformer-lens", "datasets", "optax")
LOOKED_AT = 1 << 24


def provenance(
    spec: dict[str, Any], stream: StreamSpec, device: str, roots: Roots, precision: dict[str, Any]
) -> dict[str, Any]:
    """The provenance of what a job makes, as JSON.

    Args:
        spec: of the job.
        stream: which model it has read, and which text.
        precision: in which matrix products have run.
    """
    model, dataset = stream.model, stream.dataset
    return {
        "spec": spec,
        "model": model and {"name": model.name, "revision": model.revision or revision(model.name, roots)},
        "dataset": dataset and {"path": dataset.path, "revision": dataset.revision or revision(dataset.path, roots)},
        "code": {"sae-service": __version__, "python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": device,
        "precision": precision,
    } | ({"rows_rounded_to": stream.rounded_to} if stream.rounded_to else {})


def revision(name: str, roots: Roots = EVERYWHERE) -> str | None:
    """Of local files below `roots` a hash over their names, sizes and first 16 MiB; of a hub model in the cache its commit."""
    if not is_path(name):
        return _cached_commit(name)
    path = Path(name).expanduser()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if roots.hold(file) and file.is_file():
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                digest.update(content.read(LOOKED_AT))
    return f"sha256:{digest.hexdigest()}"


def _cached_commit(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent.name if isinstance(config, str) else None
