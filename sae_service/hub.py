"""What the hub says of a name, asked in a few seconds: its own libraries keep trying for half a minute and more."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from sae_service.errors import DataNotFound, ModelNotFound, SAEServiceError, translated
from sae_service.settings import hub_host, is_offline
from sae_service.spec import ModelSpec, StreamSpec, fields, is_path

T = TypeVar("T")
TIMEOUT_S = 3
PATIENCE_S, PAUSE_S = 20, 2
KINDS: dict[str, tuple[type[SAEServiceError], str, str]] = {
    "model": (ModelNotFound, "/stream/model", fields.MODEL_NAME),
    "dataset": (DataNotFound, "/stream/dataset", fields.DATASET_PATH),
}
"""What to raise, and which part of the spec and which field of it has the name."""
COMMIT = re.compile("[0-9a-f]{40}")


def pinned(stream: StreamSpec, agreed: Callable[[Callable[[], Any]], Any] = lambda find: find()) -> StreamSpec:
    """The stream with the commits that its model and dataset have now, so that all their files are read from one of them,
    whatever is pushed meanwhile. A name of which neither the hub nor this machine tells one stays: who reads it says why.

    Args:
        agreed: finds for several processes what one of them finds.
    """
    of_hub = _of_hub(stream)
    if not of_hub:
        return stream
    commits = agreed(lambda: {kind: _commit(kind, *named) for kind, named in of_hub.items()})
    found = {kind: commit for kind, commit in commits.items() if commit is not None}
    return stream.model_copy(
        update={kind: getattr(stream, kind).model_copy(update={"revision": commit}) for kind, commit in found.items()}
    )


def pinned_model(model: ModelSpec) -> ModelSpec:
    """A model with the commit that it has now."""
    commit = None if is_path(model.name) else _commit("model", model.name, model.revision)
    return model if commit is None else model.model_copy(update={"revision": commit})


def _of_hub(stream: StreamSpec) -> dict[str, tuple[str, str | None]]:
    """The names and revisions of the model and the dataset, as far as they are a hub's."""
    named: dict[str, tuple[str, str | None]] = {}
    if stream.model is not None:
        named["model"] = stream.model.name, stream.model.revision
    if stream.dataset is not None:
        named["dataset"] = stream.dataset.path, stream.dataset.revision
    return {kind: (name, revision) for kind, (name, revision) in named.items() if not is_path(name)}


def _commit(kind: str, name: str, revision: str | None) -> str | None:
    """The commit of a revision: what the hub says, or else what is on this machine."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    here = _commit_here(name, revision) if kind == "model" else None
    if is_offline():
        return here
    ask = partial(_asked_commit, kind)
    try:
        return ask(name, revision) if here else patiently(ask, name, revision)
    except (SAEServiceError, ConnectionError):
        return here


def _commit_here(name: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _asked_commit(kind: str, name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    with translated(partial(_meaning, kind, name, revision)):
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_S).sha


def check_model(name: str, revision: str | None) -> None:
    """Asks the hub for a model that is not in the local cache, if the user lets the libraries ask.

    Raises:
        ModelNotFound: the hub has no such model, or not for this user.
        ConnectionError: the hub does not answer.
    """
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        _ask("model", name, "config.json", revision)


def check_dataset(name: str, revision: str | None) -> None:
    """Asks the hub for a dataset, if the user lets the libraries ask.

    Raises:
        DataNotFound: the hub has no such dataset, or not for this user.
        ConnectionError: the hub does not answer.
    """
    from huggingface_hub.errors import EntryNotFoundError

    # Not every dataset has one; that it has none is said of a dataset that is there.
    with suppress(EntryNotFoundError):
        _ask("dataset", name, "README.md", revision)


@cache
def wait_for(check: Callable[[str, str | None], None], name: str, revision: str | None) -> None:
    """Asks `patiently`, and once a process: whoever has begun to read goes on with the patience of the library that reads."""
    patiently(check, name, revision)


def patiently(ask: Callable[[str, str | None], T], name: str, revision: str | None) -> T:
    """Asks until the hub answers, for PATIENCE_S at most. Raises what `ask` raises."""
    began = time.monotonic()
    while True:
        try:
            return ask(name, revision)
        except ConnectionError:
            if time.monotonic() - began > PATIENCE_S:
                raise
        time.sleep(PAUSE_S)


def _ask(what: str, name: str, file: str, revision: str | None) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if not is_offline():
        with translated(partial(_meaning, what, name, revision)):
            get_hf_file_metadata(hf_hub_url(name, file, repo_type=what, revision=revision), timeout=TIMEOUT_S)


def _meaning(what: str, name: str, revision: str | None, error: Exception) -> Exception | None:
    """What an error of the hub's library says of a name. A gated repository's error is one of a missing one too."""
    from huggingface_hub import errors as of_hub

    kind, part, field = KINDS[what]
    match error:
        case of_hub.GatedRepoError():
            hint = "Accept its terms there, and give the service's processes a token (HF_TOKEN)."
            return kind(f"{hub_host()} gives {name} only to users who have accepted its terms.", field, hint)
        case of_hub.RepositoryNotFoundError():
            hint = f"A folder's name starts with '/', '.' or '~'; a private {what} needs a token (HF_TOKEN)."
            return kind(f"{hub_host()} has no {what} {name}.", field, hint)
        case of_hub.RevisionNotFoundError():
            return kind(f"{hub_host()} has no revision {revision} of {name}.", f"{part}/revision")
        case of_hub.EntryNotFoundError() if what == "dataset":
            return None
        case of_hub.EntryNotFoundError():
            return kind(f"{name} on {hub_host()} has no config.json.", field)
    return ConnectionError(f"{hub_host()} does not say whether it has {name}: {error}")
