"""The files of a language model in a folder: that they are there, and that a job may read them. Never imports torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_service.errors import InvalidSpec, ModelNotFound
from sae_service.readable import Roots, check_regular, content
from sae_service.spec import fields

CONFIG = "config.json"
WEIGHTS = (".safetensors", ".bin")
INDEX = ".index.json"
TEMPLATES = ("chat_templates", "additional_chat_templates")
"""The only folders in a model's folder that are read."""
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 10_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner"), 1 << 20),
    "vocab_size": 1 << 24,
}
"""Sizes in a configuration, and the largest of each that is believed."""


def check_hub_name(name: str, param: str = fields.MODEL_NAME) -> None:
    """Raises InvalidSpec for a hub's name that means something on this machine too, which libraries would take instead."""
    if Path(name).exists():
        message = f"{name} is a name on a hub, and something on this machine too."
        raise InvalidSpec(message, param=param, hint=f"If that is meant, write ./{name}")


def check_context(context_size: int, limit: int) -> None:
    """Raises InvalidSpec for rows of more tokens than a model reads at once."""
    if context_size > limit:
        raise InvalidSpec(f"must be at most the model's context of {limit}: {context_size}", param="/stream/context_size")


def checked_folder(name: str, roots: Roots) -> tuple[Path, dict[str, Any]]:
    """The resolved folder of a model and its configuration. Raises as `checked_files` does."""
    folder, _ = checked_files(name, roots)
    return folder, _configuration(folder, name, roots)


def checked_files(name: str, roots: Roots) -> tuple[Path, list[Path]]:
    """The resolved folder of a model, and the files that a reader of it may open.

    Raises:
        InvalidSpec: the folder, or a file that the model is made of, lies outside of `roots`.
        ModelNotFound: it holds no model, or a part of it is missing or cannot be read.
    """
    folder = roots.inside(name, fields.MODEL_NAME)
    try:
        files = list(_files(folder)) if folder.is_dir() else []
    except OSError as error:
        raise _unreadable(name, error) from error
    if folder / CONFIG not in files:
        raise ModelNotFound(f"{name} is no folder with a {CONFIG}", param=fields.MODEL_NAME)
    _check_sizes(_configuration(folder, name, roots), f"{name}/{CONFIG}")
    for index in (file for file in files if file.name.endswith(INDEX)):
        files += [folder / shard for shard in _shards(name, index, roots)]
    for file in files:
        if not roots.hold(file):
            raise roots.refusal(f"What the link {file.relative_to(folder)} in {name} names", fields.MODEL_NAME)
        try:
            check_regular(file)
            if file.suffix == ".safetensors":
                _check_length(file)
        except OSError as error:
            raise _unreadable(f"{name}/{file.relative_to(folder)}", error) from error
    if not any(file.suffix in WEIGHTS for file in files):
        raise ModelNotFound(f"{name} has no weights (*.safetensors)", param=fields.MODEL_NAME)
    return folder, files


def _configuration(folder: Path, name: str, roots: Roots) -> dict[str, Any]:
    return _object(folder / CONFIG, f"{name}/{CONFIG}", roots)


def _files(folder: Path) -> Iterator[Path]:
    """What a reader of the model may open. A folder that is a link is among them, and is not looked into."""
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            yield entry
        elif entry.name in TEMPLATES:
            yield from entry.iterdir()


def _shards(name: str, index: Path, roots: Roots) -> set[str]:
    """The names of the files that an index has the weights in. Raises ModelNotFound, or InvalidSpec for one outside."""
    written = _object(index, f"{name}/{index.name}", roots).get("weight_map")
    if not isinstance(written, dict) or not all(isinstance(shard, str) for shard in written.values()):
        raise ModelNotFound(f"{name}/{index.name} has no weight_map of names", param=fields.MODEL_NAME)
    shards = set(written.values())
    for shard in shards:
        if not roots.hold(index.parent / shard):
            raise roots.refusal(f"{shard}, which {name}/{index.name} names,", fields.MODEL_NAME)
    return shards


def _object(file: Path, name: str, roots: Roots) -> dict[str, Any]:
    """The JSON object in a file."""
    if not roots.hold(file):
        raise roots.refusal(f"What the link {name} names", fields.MODEL_NAME)
    try:
        value = json.loads(content(file))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(name, error) from error
    if not isinstance(value, dict):
        raise ModelNotFound(f"{name} is not a JSON object", param=fields.MODEL_NAME)
    return value


def _check_sizes(config: dict[str, Any], name: str) -> None:
    """Raises ModelNotFound for a size that no model has: a library would build such a model before it looks at the weights."""
    for part in (config, config.get("text_config")):
        for key, largest in LARGEST.items():
            size = part.get(key) if isinstance(part, dict) else None
            if type(size) is int and not 0 < size <= largest:
                raise ModelNotFound(f"{name}: {key} must be from 1 to {largest}: {size}", param=fields.MODEL_NAME)


def _check_length(file: Path) -> None:
    """Raises OSError for a safetensors file that is cut off, or is none: its header would not fit into it."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if not 2 <= header <= file.stat().st_size - 8:
        raise OSError("it is cut off, or no safetensors file")


def _unreadable(name: str, error: Exception) -> ModelNotFound:
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ModelNotFound(f"{name} cannot be read: {said}", param=fields.MODEL_NAME)
