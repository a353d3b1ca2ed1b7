"""What the model hub says of a name, asked in a few seconds."""

from sae_service.errors import ModelNotFound
from sae_service.settings import hub_host, is_offline

TIMEOUT_S = 3
PARAM = "/stream/model/name"


def check_model(name: str, revision: str | None) -> None:
    """Asks the hub for a model that is not in the local cache, if the user lets the libraries ask.

    Raises:
        ModelNotFound: the hub has no such model, or not for this user.
        ConnectionError: the hub does not answer.
    """
    from huggingface_hub import errors as of_hub
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str) or is_offline():
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=TIMEOUT_S)
    except of_hub.GatedRepoError as error:
        hint = "Accept its terms there, and give the service's processes a token (HF_TOKEN)."
        raise ModelNotFound(f"{hub_host()} gives {name} only to users who have accepted its terms.", PARAM, hint) from error
    except of_hub.RepositoryNotFoundError as error:
        hint = "A folder's name starts with '/', '.' or '~'; a private model needs a token (HF_TOKEN)."
        raise ModelNotFound(f"{hub_host()} has no model {name}.", PARAM, hint) from error
    except of_hub.RevisionNotFoundError as error:
        raise ModelNotFound(f"{hub_host()} has no revision {revision} of {name}.", "/stream/model/revision") from error
    except of_hub.EntryNotFoundError as error:
        raise ModelNotFound(f"{name} on {hub_host()} has no config.json.", PARAM) from error
    except Exception as error:
        raise ConnectionError(f"{hub_host()} does not answer: {error}") from error
