"""What can be refused before a job is queued, by looking at files only. Never imports torch.

The training process checks again with the real model and text; this is for an answer within the request.
"""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from fsspec.compression import compr
from fsspec.utils import infer_compression

from sae_service import hub
from sae_service.activations import dataset_files, model_files
from sae_service.activations.chat import no_template
from sae_service.activations.documents import check_kind
from sae_service.activations.text import check_column, check_split, check_splits, load_arguments, loader_of
from sae_service.errors import DataNotFound, InvalidSpec, located
from sae_service.formats import FORMATS, folder
from sae_service.hook_points import RESIDUAL_SITES, check_folding, check_hook
from sae_service.readable import LARGEST_LOOK, Look, Roots, content
from sae_service.spec import (
    DatasetSpec,
    FolderSpec,
    JobSpec,
    LatentsSpec,
    ModelSpec,
    PromptedSpec,
    StatisticsSpec,
    SteeringSpec,
    StreamSpec,
    fields,
    is_path,
)
from sae_service.training import start

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
WIDTH = ("hidden_size", "n_embd", "d_model")
LONGEST_LINE = 1 << 20
"""Bytes of a line that is parsed while a job is submitted."""
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")


def may_take_long(job: Any) -> bool:
    """Whether there are files to be looked at, or a hub to be asked."""
    return not isinstance(job, JobSpec) or job.stream.synthetic is None or any(sae.initial is not None for sae in job.saes)


def check(job: Any, roots: Roots) -> None:
    """Raises InvalidSpec, ModelNotFound or DataNotFound for the first thing that cannot work in a job of any kind.

    Args:
        roots: where a job may read; nothing outside is looked at.
    """
    CHECKS[job.kind](job, roots)


def _check_training(job: JobSpec, roots: Roots) -> None:
    config = {}
    if job.stream.synthetic is None:
        hooks = [
            (name, f"/saes/{index}/{field}")
            for index, sae in enumerate(job.saes)
            for field, names in (("hook_name", sae.reads), ("hook_name_out", sae.writes if sae.hook_name_out else ()))
            for name in names
        ]
        config = _check_text(job.stream, hooks, roots)
    for index, sae in enumerate(job.saes):
        if sae.initial is not None:
            widths = {name: width for name in (*sae.reads, *sae.writes) if (width := _width(job, config, name)) is not None}
            start.check(sae, index, widths, roots)


def _check_latents(job: LatentsSpec, roots: Roots) -> None:
    assert job.stream is not None, "the stream of a job's SAEs is filled in when the job is submitted"
    hooks, _ = _check_folders(job.folders, roots)
    if job.dataset is None:
        _check_text(job.stream, hooks, roots)
        return
    with located("/dataset", "/stream/dataset"):
        _check_text(job.stream.model_copy(update={"dataset": job.dataset}), hooks, roots)


def _check_folders(folders: Sequence[FolderSpec], roots: Roots) -> tuple[list[tuple[str, str]], list[int]]:
    """The hook points of SAEs in folders with their fields, and how many latents each has, once they may and can be read."""
    hooks, sizes = list[tuple[str, str]](), list[int]()
    for index, one in enumerate(folders):
        with located(f"/folders/{index}"):
            path = roots.inside(one.path, "/path")
            if not path.is_dir():
                raise InvalidSpec("there is no such folder", "/path")
            roots.refuse_links_out_of(path, one.path, "/path")
            sizes.append(FORMATS[one.format or folder.detected(path)].sizes(path)[1])
        hooks.append((one.hook_name, f"/folders/{index}/hook_name"))
    return hooks, sizes


def _check_prompted(job: PromptedSpec, roots: Roots) -> None:
    assert job.model is not None, "the model of a job's SAEs is filled in when the job is submitted"
    hooks, sizes = _check_folders(job.folders, roots)
    given = job.direction if isinstance(job, SteeringSpec) else None
    if isinstance(job, SteeringSpec):
        if job.hook_name is not None:
            hooks.append((job.hook_name, "/hook_name"))
        for d_sae in sizes:
            if job.latent is not None and job.latent >= d_sae:
                raise InvalidSpec(f"the SAE has no latent {job.latent}; its latents are 0 to {d_sae - 1}", "/latent")
    with located("/model", "/stream/model"):
        _, config = _check_model(job.model, 1, hooks, roots)
        with suppress(ConnectionError):
            _ask_for(job.model)
    limit, width = _first(config, CONTEXT), _first(config, WIDTH)
    for index, prompt in enumerate(job.prompts):
        if limit is not None and not isinstance(prompt, str) and len(prompt) > limit:
            raise InvalidSpec(f"has {len(prompt)} tokens, and the model's context is {limit}", f"/prompts/{index}")
    if given is not None and width is not None and hooks[0][0].split(".")[-1] in RESIDUAL_SITES and len(given) != width:
        raise InvalidSpec(f"has {len(given)} numbers, and the rows of {hooks[0][0]} have {width}", "/direction")


def _check_statistics(job: StatisticsSpec, roots: Roots) -> None:
    _check_text(job.stream, [(name, f"/hook_names/{index}") for index, name in enumerate(job.hook_names)], roots)


CHECKS: dict[str, Callable[[Any, Roots], None]] = {
    "train": _check_training,
    "latents": _check_latents,
    "statistics": _check_statistics,
    "steering": _check_prompted,
    "attribution": _check_prompted,
}
"""What is looked at before a job of each kind is queued."""


def _check_text(stream: StreamSpec, hooks: Sequence[tuple[str, str]], roots: Roots) -> dict[str, Any]:
    """The configuration of the model, or nothing for one from a hub, once it and the text may and can be read.

    Args:
        hooks: names of hook points, each with the field that names it.
    """
    model, dataset = stream.text_source
    if is_path(dataset.path):
        roots.inside(dataset.path, fields.DATASET_PATH)
    else:
        dataset_files.check_name(dataset.path)
    check_splits(dataset)
    folder, config = _check_model(model, stream.context_size, hooks, roots)
    if is_path(dataset.path):
        check_dataset(dataset, dataset.split, roots)
        if dataset.held_out_split is not None:
            check_dataset(dataset, dataset.held_out_split, roots)
    if dataset.chat and folder is not None:
        _check_chat(folder)
    # A hub that does not answer is no reason to refuse: the training process may have the model, or a network.
    with suppress(ConnectionError):
        _ask_for(model)
        if not is_path(dataset.path):
            hub.check_dataset(dataset.path, dataset.revision)
    return config


def _check_model(
    model: ModelSpec, context_size: int, hooks: Sequence[tuple[str, str]], roots: Roots
) -> tuple[Path | None, dict[str, Any]]:
    """The folder and the configuration of a model, none of one from a hub, once it may be read and has the hook points."""
    folder, config = None, dict[str, Any]()
    if is_path(model.name):
        folder, config = model_files.checked_folder(model.name, roots)
    else:
        model_files.check_hub_name(model.name)
    if (limit := _first(config, CONTEXT)) is not None:
        model_files.check_context(context_size, limit)
    if model.weight_processing == "compatibility":
        check_folding(config.get("model_type"))
    for name, param in hooks:
        check_hook(name, _first(config, LAYERS), config.get("model_type"), param)
    return folder, config


def _ask_for(model: ModelSpec) -> None:
    """Asks the hub for a model that is not in a folder. Raises as `hub.check_model` does."""
    if not is_path(model.name):
        hub.check_model(model.name, model.revision)


def _check_chat(folder: Path) -> None:
    """Raises InvalidSpec if a model's folder has no chat template, in its tokenizer's configuration or in a file beside it."""
    if any((folder / name).exists() for name in CHAT_TEMPLATES):
        return
    with suppress(OSError, ValueError, RecursionError):  # what cannot be read, the training process reports
        found = json.loads(content(folder / "tokenizer_config.json"))
        if isinstance(found, dict) and not found.get("chat_template"):
            raise no_template()


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


def check_dataset(spec: DatasetSpec, split: str, roots: Roots) -> None:
    """Raises DataNotFound or InvalidSpec if local data lacks the split or its text column, or leads out of `roots`."""
    files: Any = dataset_files.builder(spec, load_arguments(spec, split, roots), roots).config.data_files or {}
    check_split(spec, split, files)
    columns = columns_of(str(files[split][0]))
    if columns is not None:
        check_column(spec, list(columns))
        if columns[spec.column] not in (None, "", []):
            check_kind(spec, columns[spec.column], f"column {spec.column!r}")


def columns_of(file: str) -> dict[str, Any] | None:
    """The columns of a file of text, each with a value of the type that it holds or None if that cannot be told.

    None if that is not looked into here: a file of another kind, or a long first line. Raises DataNotFound for a file that
    cannot be read.
    """
    from pyarrow import parquet

    path = Path(dataset_files.local(file))
    loader = loader_of(path.name.removesuffix(".zip"))
    with dataset_files.reading(path.name), Look(path) as look:
        if loader == "text":
            return {"text": "a line"}
        if loader in ("parquet", "arrow"):
            schema = parquet.read_schema(look) if loader == "parquet" else _arrow_schema(look)
            return {field.name: _of_type(field.type) for field in schema}
        if loader not in ("json", "csv"):
            return None
        line = _first_line(look, infer_compression(path.name))
        if not line:
            raise DataNotFound(f"{path.name} is empty", param=fields.DATASET_PATH)
        if len(line) > LONGEST_LINE or (line[:1] == b"[" and ".json" in path.suffixes):
            return None
        if loader == "csv":
            return dict.fromkeys(next(csv.reader([line.decode("utf-8-sig")])), "a cell")
        first = json.loads(line)
    if not isinstance(first, dict):
        raise DataNotFound(f"the first line of {path.name} is not a JSON object", param=fields.DATASET_PATH)
    return first


def _arrow_schema(look: Look) -> Any:
    import pyarrow

    try:
        return pyarrow.ipc.open_stream(look).schema
    except pyarrow.ArrowInvalid:
        look.seek(0)
        return pyarrow.ipc.open_file(look).schema


def _first_line(file: Look, compression: str | None) -> bytes:
    """The first line that is not blank; the beginning of a long one; nothing if there is none."""
    readers: dict[str, Any] = compr  # pyright: ignore[reportAssignmentType]
    lines = readers[compression](file, mode="rb") if compression else file
    head = lines.read(LARGEST_LOOK)
    line = next((line for line in BytesIO(head) if line.strip()), b"")
    if not line and len(head) == LARGEST_LOOK:
        raise DataNotFound(f"its first {LARGEST_LOOK} bytes are blank lines", param=fields.DATASET_PATH)
    return line


def _of_type(kind: Any) -> Any:
    """A value of an Arrow type, or None if it has none that could be a document."""
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "a string"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _of_type(kind.value_type)
        return [] if item is None else [item]
    if types.is_struct(kind):
        return {field.name: _of_type(field.type) for field in kind}
    if types.is_integer(kind):
        return 0
    return b"" if types.is_binary(kind) or types.is_large_binary(kind) else None if types.is_null(kind) else 0.0
