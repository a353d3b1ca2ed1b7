"""What decides the rows of a stream, and its hash: the name of the stream in the activation cache."""

import hashlib
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_service.activations import dataset_files, text
from sae_service.activations.noted_files import NotedFiles
from sae_service.readable import Roots
from sae_service.spec import DatasetSpec, ModelSpec, StreamSpec

OF_TRAINING = (
    "tokens", "batch", "buffer_rows", "buffer_bytes", "seed", "max_activation_norm_multiple", "cache", "cache_dtype", "synthetic",
)  # fmt: skip
"""The fields of a stream that say what becomes of its rows. All others, also those that are yet to come, may decide them."""
PACKAGES = ("torch", "transformer-lens", "transformers", "tokenizers", "datasets")
COMMIT = re.compile(r"hf://[^@]+@([0-9a-f]{40})/")


def identity(
    stream: StreamSpec, project: str | None, computed_by: dict[str, Any], model_files: NotedFiles | None,
    text_files: NotedFiles | None, roots: Roots, ends_here: Callable[[], bool],
) -> dict[str, Any] | None:  # fmt: skip
    """What decides the rows of a stream, as JSON, or None if something of it is not known: which commit a hub has given.

    The model has been loaded.

    Args:
        project: whose jobs share the rows; None: all jobs.
        computed_by: the device, and how it computes.
        model_files, text_files: those of the model, and of the text; None if they are a hub's.
        ends_here: asked with every piece of a file whether to stop.

    Raises:
        Stopped: it should stop.
        DataNotFound, InvalidSpec: see `open_text`.
        OSError: a file cannot be read.
    """
    model, dataset = stream.text_source
    content = {
        "model": model_files.sha256(ends_here) if model_files else _of_model(model),
        "dataset": text_files.sha256(ends_here) if text_files else _of_dataset(dataset, roots),
    }
    if None in content.values():
        return None
    fields = stream.model_dump(mode="json", exclude=set(OF_TRAINING))
    fields["model"] = {name: value for name, value in fields["model"].items() if name not in ("name", "revision")}
    fields["dataset"] = {name: value for name, value in fields["dataset"].items() if name not in ("path", "revision")}
    versions = {name: version(name) for name in PACKAGES}
    return {"project": project, "stream": fields, "content": content, "computed_by": computed_by | versions | {"code": _code()}}


def key(identity: dict[str, Any]) -> str:
    """The name of a stream: 32 hex digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _of_model(spec: ModelSpec) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(spec.name, "config.json", revision=spec.revision)
    return f"{spec.name}@{Path(config).parent.name}" if isinstance(config, str) else None


def _of_dataset(spec: DatasetSpec, roots: Roots) -> str | None:
    builder = dataset_files.builder(spec, text.load_arguments(spec, spec.split, roots), roots)
    return commit([str(file) for files in (builder.config.data_files or {}).values() for file in files])


def commit(files: list[str]) -> str | None:
    """Files of a hub with their commits, as one text; None if there are none, or one of them does not name its commit."""
    return "\n".join(sorted(files)) if files and all(COMMIT.match(file) for file in files) else None


def _code() -> str:
    """A hash of the code between text and rows: another release may pack or read otherwise."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
