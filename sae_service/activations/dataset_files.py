"""The files that a dataset is made of: which they are, and that a job may read them. Never imports torch.

A folder can lead out of itself: by links, and by a README that names files. Both are looked at before `datasets` sees the
folder, so that nothing outside is listed and nothing is fetched; then the files that it has found are looked at.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from sae_service.activations.model_files import check_hub_name
from sae_service.errors import DataNotFound, InvalidSpec, translated
from sae_service.hub import check_dataset, wait_for
from sae_service.readable import Roots, content
from sae_service.spec import DatasetSpec, fields, is_path

KINDS = ("json", "text", "csv", "parquet", "arrow")
"""The readers of `datasets` that read text, and no file but those that they are given."""
CARDS = ("README.md", ".huggingface.yaml")
INFOS = "dataset_infos.json"
HUB = "hf://"


def check_name(name: str) -> None:
    """Raises InvalidSpec for a hub's name that `datasets` would take for something on this machine."""
    if name in packaged_loaders():
        hint = "Give the path of a file or folder; its kind is known by its ending."
        raise InvalidSpec(f"{name} is a kind of file, and no dataset.", param=fields.DATASET_PATH, hint=hint)
    check_hub_name(name, fields.DATASET_PATH)


def packaged_loaders() -> frozenset[str]:
    """The names that `datasets` takes for its own readers, without the seconds of its import."""
    found = find_spec("datasets")
    assert found is not None
    assert found.submodule_search_locations is not None
    return frozenset(path.name for path in (Path(found.submodule_search_locations[0]) / "packaged_modules").iterdir())


def builder(spec: DatasetSpec, arguments: dict[str, Any], roots: Roots) -> Any:
    """What `datasets` makes of `arguments`, once all files of it have been found to be readable.

    Raises:
        InvalidSpec: some lie outside of `roots`.
        DataNotFound: they cannot be read, or are no text.
    """
    import datasets

    if not is_path(spec.path):
        check_name(spec.path)
        _check_hub(spec)
    elif (folder := roots.inside(spec.path, fields.DATASET_PATH)).is_dir():
        with reading(spec.path):
            roots.refuse_links_out_of(folder, spec.path, fields.DATASET_PATH)
        _check_cards(folder, spec.path)
    with reading(spec.path):
        made = datasets.load_dataset_builder(**arguments)
    kind = type(made).__module__.split(".")[-1]
    if kind not in KINDS:
        message = f"{spec.path} holds files of the kind {kind}; text is read from {', '.join(KINDS)}."
        raise DataNotFound(message, param=fields.DATASET_PATH)
    for files in (made.config.data_files or {}).values():
        for file in map(str, files):
            if not (roots.hold(Path(local(file))) if is_path(spec.path) else file.startswith(HUB)):
                raise roots.refusal(f"A file that {spec.path} names", fields.DATASET_PATH)
    return made


def _check_hub(spec: DatasetSpec) -> None:
    """Raises DataNotFound if the hub does not have a dataset, or stays away."""
    try:
        wait_for(check_dataset, spec.path, spec.revision)
    except ConnectionError as error:
        hint = "Text can also be read from a file or a folder; its name starts with '/', '.' or '~'."
        raise DataNotFound(f"{spec.path} cannot be read: {error}", fields.DATASET_PATH, hint) from error


def reading(name: str) -> AbstractContextManager[None]:
    """Makes DataNotFound of whatever a reader of foreign files raises."""
    return translated(lambda error: DataNotFound(f"{name} cannot be read: {error}", param=fields.DATASET_PATH))


def local(file: str) -> str:
    """The path of a file as `datasets` names it, which for one in an archive is the archive's."""
    return file.split("::")[-1].removeprefix("file://")


def _check_cards(folder: Path, name: str) -> None:
    """Raises InvalidSpec if what a folder says of itself names files elsewhere, DataNotFound if it cannot be read."""
    import yaml
    from huggingface_hub import DatasetCard

    for card in (folder / card for card in (*CARDS, INFOS) if (folder / card).exists()):
        with reading(f"{name}/{card.name}"):
            text = content(card).decode()
            if card.name == INFOS:
                continue
            said = DatasetCard(text).data.to_dict() if card.suffix == ".md" else yaml.safe_load(text)
            configs = said.get("configs") if isinstance(said, dict) else None
            if any(_leads_out(pattern) for pattern in _patterns(configs)):
                hint = "data_files and data_dir name files of the folder."
                raise InvalidSpec(f"{name}/{card.name} names files elsewhere.", param=fields.DATASET_PATH, hint=hint)


def _patterns(configs: Any) -> Iterator[str]:
    """Every text below data_files and data_dir."""
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict):
            yield from _texts([config.get("data_files"), config.get("data_dir")], set())


def _texts(value: Any, seen: set[int]) -> Iterator[str]:
    """All texts in `value`, of which YAML may name a part many times over."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, seen)


def _leads_out(pattern: str) -> bool:
    return ":" in pattern or "\\" in pattern or pattern.startswith(("/", "~")) or ".." in PurePosixPath(pattern).parts
