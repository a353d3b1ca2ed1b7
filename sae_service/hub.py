"""What the model hub says of a name, asked in a few seconds."""

from functools import partial

from sae_service.errors import ModelNotFound, translated
from sae_service.settings import hub_host, is_offline
from sae_service.spec import fields

TIMEOUT_S = 3


def check_model(name: str, revision: str | None) -> None:
    """Asks the hub for a model that is not in the local cache, if the user lets the libraries ask.

    Raises:
        ModelNotFound: the hub has no such model, or not for this user.
        ConnectionError: the hub does not answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str) or is_offline():
        return
    with translated(partial(_said, name, revision)):
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=TIMEOUT_S)


def _said(name: str, revision: str | None, error: Exception) -> Exception:
    """What an error of the hub's library says of a name. A gated repository's error is one of a missing one too."""
    from huggingface_hub import errors as of_hub

    match error:
        case of_hub.GatedRepoError():
            hint = "Accept its terms there, and give the service's processes a token (HF_TOKEN)."
            return ModelNotFound(f"{hub_host()} gives {name} only to users who have accepted its terms.", fields.MODEL_NAME, hint)
        case of_hub.RepositoryNotFoundError():
            hint = "A folder's name starts with '/', '.' or '~'; a private model needs a token (HF_TOKEN)."
            return ModelNotFound(f"{hub_host()} has no model {name}.", fields.MODEL_NAME, hint)
        case of_hub.RevisionNotFoundError():
            return ModelNotFound(f"{hub_host()} has no revision {revision} of {name}.", "/stream/model/revision")
        case of_hub.EntryNotFoundError():
            return ModelNotFound(f"{name} on {hub_host()} has no config.json.", fields.MODEL_NAME)
    return ConnectionError(f"{hub_host()} does not answer: {error}")
