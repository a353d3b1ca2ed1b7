"""What can be refused before a job is queued, by looking at files only. Never imports torch.

The training process checks again with the real model and text; this is for an answer within the request.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_service.activations.tokens import check_column, check_splits, load_arguments
from sae_service.errors import DataNotFound, InvalidSpec, ModelNotFound, SAEServiceError
from sae_service.formats import FORMATS
from sae_service.hook_points import RESIDUAL_SITES, check_hook
from sae_service.spec import DatasetSpec, JobSpec, is_path
from sae_service.training import start

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH = ("hidden_size", "n_embd", "d_model")
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")


def check(job: JobSpec, roots: tuple[Path, ...]) -> None:
    """Raises InvalidSpec, ModelNotFound or DataNotFound for the first thing that cannot work.

    Args:
        roots: resolved folders below which a job may read; nothing outside them is looked at.
    """
    config = {} if job.stream.synthetic is not None else _check_text(job, roots)
    for index, sae in enumerate(job.saes):
        if sae.initial is not None:
            for name in FORMATS[sae.initial.format].files:
                _inside(f"{sae.initial.path}/{name}", roots, f"/saes/{index}/initial/path")
            widths = {name: width for name in (*sae.reads, *sae.writes) if (width := _width(job, config, name)) is not None}
            start.check(sae, index, widths)


def _check_text(job: JobSpec, roots: tuple[Path, ...]) -> dict[str, Any]:
    """The configuration of the model, or nothing for one from a hub, once it and the text may and can be read."""
    model, dataset = job.stream.text_source
    if is_path(model.name):
        _inside(model.name, roots, "/stream/model/name")
    if is_path(dataset.path):
        _inside(dataset.path, roots, "/stream/dataset/path")
    check_splits(dataset)
    config = model_config(model.name) if is_path(model.name) else {}
    limit = _first(config, CONTEXT)
    if limit is not None and job.stream.context_size > limit:
        raise InvalidSpec(
            f"must be at most the model's context of {limit}: {job.stream.context_size}", param="/stream/context_size"
        )
    for index, sae in enumerate(job.saes):
        for field, names in (("hook_name", sae.reads), ("hook_name_out", sae.writes if sae.hook_name_out else ())):
            for name in names:
                check_hook(name, _first(config, LAYERS), f"/saes/{index}/{field}")
    if is_path(dataset.path):
        check_dataset(dataset, dataset.split, roots)
        if dataset.held_out_split is not None:
            check_dataset(dataset, dataset.held_out_split, roots, "/stream/dataset/held_out_split")
    return config


def _inside(name: str, roots: tuple[Path, ...], param: str) -> None:
    try:
        path = None if "://" in name else Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, no such user, a null byte: say no more than elsewhere
        path = None
    if path is None or not any(path.is_relative_to(root) for root in roots):
        hint = "Whoever runs the service adds a folder with SAE_SERVICE_ALLOWED_ROOTS='[\"/folder\"]'."
        listed = ", ".join(str(root) for root in roots)
        raise InvalidSpec(f"{name} lies outside the folders that jobs may read: {listed}.", param=param, hint=hint)


def model_config(name: str) -> dict[str, Any]:
    """The configuration of a model in a folder. Raises ModelNotFound if the folder holds no model."""
    folder, param = Path(name).expanduser().resolve(), "/stream/model/name"
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelNotFound(f"{name} is no folder with a config.json", param=param) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"{name}/config.json cannot be read: {error}", param=param) from error
    if not isinstance(config, dict):
        raise ModelNotFound(f"{name}/config.json is not a JSON object", param=param)
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        raise ModelNotFound(f"{name} has no weights (*.safetensors)", param=param)
    return config


def _width(job: JobSpec, config: dict[str, Any], hook_name: str) -> int | None:
    """The width of a hook point whose rows are as wide as the model, or None if only the model knows."""
    if job.stream.synthetic is not None:
        return job.stream.synthetic.d_in
    return _first(config, WIDTH) if hook_name.split(".")[-1] in RESIDUAL_SITES else None


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for part in (config, config.get("text_config")):
        for name in names:
            if isinstance(part, dict) and type(part.get(name)) is int:
                return part[name]
    return None


def check_dataset(
    spec: DatasetSpec, split: str, roots: tuple[Path, ...], param: str = "/stream/dataset/split"
) -> None:
    """Raises DataNotFound or InvalidSpec if local data lacks the split or its text column, or leads out of `roots`.

    A folder's README can name files anywhere, and a file in it can be a link.
    """
    import datasets

    with _reading(spec.path):
        files: Any = datasets.load_dataset_builder(**load_arguments(spec, split)).config.data_files or {}
    if split not in files:
        listed = ", ".join(map(str, files))
        raise DataNotFound(f"{spec.path} has no split {split!r}; it has {listed}.", param=param)
    for file in files[split]:
        _inside(_local(str(file)), roots, "/stream/dataset/path")
    columns = columns_of(str(files[split][0]))
    if columns is not None:
        check_column(spec, columns)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Makes DataNotFound of whatever a reader of foreign files raises."""
    try:
        yield
    except SAEServiceError:
        raise
    except Exception as error:
        raise DataNotFound(f"{name} cannot be read: {error}", param="/stream/dataset/path") from error


def _local(file: str) -> str:
    """The path of a file as `datasets` names it, which for one in an archive is the archive's."""
    return file.split("::")[-1].removeprefix("file://")


def columns_of(file: str) -> list[str] | None:
    """The columns of a file of text, or None if its kind is not one that is looked into here."""
    import fsspec
    from pyarrow import parquet

    name = _local(file)
    endings = Path(name).suffixes
    with _reading(name):
        if ".parquet" in endings:
            return parquet.read_schema(name).names
        if ".txt" in endings:
            return ["text"]
        if ".jsonl" not in endings:
            return None
        with fsspec.open(name, "rt", compression="infer") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "null"))  # pyright: ignore[reportGeneralTypeIssues]
    if not isinstance(first, dict):
        raise DataNotFound(f"the first line of {name} is not a JSON object", param="/stream/dataset/path")
    return list(first)
