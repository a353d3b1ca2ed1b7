"""Where this installation keeps its things and what it may touch, read once from SAE_SERVICE_* variables.

This is the only module that reads the environment. What a job does is its spec's business, never a setting's.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from sae_service.errors import InvalidSetting
from sae_service.logs import LogFormat, LogLevel

PREFIX = "SAE_SERVICE_"
OWN = (PREFIX, "PG", "WANDB_API_KEY")
CLOUD = ("AWS_", "AZURE_", "GOOGLE_")
"""How variables begin that are the service's own, and the credentials of a storage that is no folder."""
DATABASES = ("sqlite", "postgresql", "postgresql+psycopg")
SECRET = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|(?:^|_)PASS|(?:^|_)(?:API)?KEY|(?:^|_)OTLP_(?:[A-Z]+_)?HEADERS)(?:_SHA256)?$", re.IGNORECASE
)
"""The endings of names whose values are secret."""
COMPILED_BYTES = 1 << 30
"""Largest size of the compiled programs that are kept; those that have not been used for longest go first."""


class Settings(BaseSettings):
    """All settings. Every field can be set by the environment variable SAE_SERVICE_<FIELD>."""

    # What is wrong may be a key, which belongs into no log.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    data_dir: Path = Field(default=Path("sae_service_data"), description="Folder of the database, the checkpoints and the logs.")
    database_url: str | None = Field(
        default=None, description="postgresql://... for many hosts. Default: a SQLite file in data_dir."
    )
    storage_url: str | None = Field(
        default=None, description="s3://bucket/prefix for many hosts. Default: the folder data_dir/storage."
    )
    cache_url: str | None = Field(
        default=None, description="file:///folder or s3://bucket/prefix of the activation cache. Default: cache/ in the storage."
    )
    cache_bytes: int = Field(
        default=20 << 30, ge=0, description="Bytes that the activation cache may take; the stream that has not been used for "
        "longest goes first. 0: there is no cache.",
    )  # fmt: skip
    allowed_roots: tuple[Path, ...] = Field(
        default=(),
        description="JSON list of folders from which jobs may read models and text, beside data_dir, "
        "the demo that ships with the package and the folder that the server was started in.",
    )
    api_key_sha256: tuple[str, ...] = Field(
        default=(),
        description="JSON list of SHA-256 hex digests of API keys that may do everything, beside those of `sae-service keys`. "
        "Without either, no key is asked for.",
    )
    projects: bool = Field(default=False, description="on: a key sees the jobs of its project only.")
    lease_s: float = Field(default=60, gt=0, description="Seconds without a sign of life after which a worker counts as dead.")
    hang_s: float = Field(
        default=3600, gt=0, description="Seconds without a word after which a training process is ended and started again."
    )
    stop_s: int = Field(
        default=120, gt=0, description="Seconds in which a job saves its state when it is paused or its worker is told to stop."
    )
    keep_days: float | None = Field(
        default=None, gt=0, description="Days after its end that a job is deleted, with its files. Default: jobs stay until "
        "somebody deletes them.",
    )  # fmt: skip
    gpu_memory_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="Share of a GPU's memory that JAX takes; the language model lives in the rest."
    )
    torch_threads: int = Field(default=1, ge=1, description="CPU threads of the language model.")
    hosts: int = Field(
        default=1, ge=1, description="Hosts that train each job together: the worker on the first takes the jobs, those on the "
        "others follow it.",
    )  # fmt: skip
    coordinator: str | None = Field(
        default=None, validate_default=True, description="host:port of the first of several hosts. The port must be free there, "
        "and closed to everybody but the others.",
    )  # fmt: skip
    host_index: int | None = Field(
        default=None, ge=0, description="Which of several hosts this is, from 0. Default: SLURM_PROCID, or 0."
    )
    log_format: LogFormat = Field(default="plain", description="plain: lines to read. json: one JSON object a line.")
    log_level: LogLevel = Field(default="info", description="The least that is logged. Libraries log warnings at the least.")
    worker_metrics_port: int | None = Field(
        default=None, ge=1, le=65535,
        description="Port at which a worker answers /metrics, without a key; each further one of `serve` takes the next.",
    )
    tracing: bool = Field(
        default=False, description="Send traces to where the OTEL_* variables say (needs the extra sae-service[tracing])."
    )

    @field_validator("database_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        try:
            is_known = url is None or (urlsplit(url).scheme in DATABASES and urlsplit(url).port != 0)
        except ValueError:
            is_known = False
        if not is_known:
            # Not the value itself: a password may be in it.
            raise ValueError("it is no address such as postgresql://user:password@host:5432/database")
        return url

    @field_validator("storage_url", "cache_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"[a-z][a-z0-9+]*://.", url):
            raise ValueError("it is no address such as file:///folder or s3://bucket/prefix")
        return url

    @field_validator("api_key_sha256")
    @classmethod
    def _are_hashes(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        for position, digest in enumerate(digests, 1):
            if not re.fullmatch("[0-9a-fA-F]{64}", digest):
                raise ValueError(
                    f"entry {position} is no SHA-256 hash, which has 64 hex digits; give the key's hash, not the key: "
                    "`sae-service key` prints both"
                )
        return tuple(digest.lower() for digest in digests)

    @field_validator("coordinator")
    @classmethod
    def _is_where_hosts_meet(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is None and info.data.get("hosts", 1) > 1:
            raise ValueError("several hosts need one")
        if address is not None and not re.fullmatch(r"[^:/\s]+:[0-9]{1,5}", address):
            raise ValueError("it is no address such as host:8476")
        return address

    @field_validator("host_index")
    @classmethod
    def _is_one_of_them(cls, index: int | None, info: ValidationInfo) -> int | None:
        if index is not None and index >= info.data.get("hosts", 1):
            raise ValueError("it must be less than SAE_SERVICE_HOSTS")
        return index

    def resolved_host_index(self) -> int:
        """Which of the hosts this is; 0 is the one that takes the jobs."""
        if self.host_index is not None or self.hosts == 1:
            return self.host_index or 0
        index = os.environ.get("SLURM_PROCID", "0")
        if not index.isdecimal() or int(index) >= self.hosts:
            remedy = f"Set {PREFIX}HOST_INDEX."
            raise InvalidSetting(f"SLURM_PROCID is {index}, which must be less than {PREFIX}HOSTS ({self.hosts}). {remedy}")
        return int(index)

    def resolved_database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        if self.database_url is None:
            return f"sqlite:///{(self.data_dir / 'service.db').resolve()}"
        return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    def resolved_storage_url(self) -> str:
        """The URL of the folder or bucket in which checkpoints are kept."""
        return self.storage_url or (self.data_dir / "storage").resolve().as_uri()

    def resolved_cache_url(self) -> str:
        """The URL of the folder or bucket of the activation cache."""
        return self.cache_url or f"{self.resolved_storage_url().rstrip('/')}/cache"

    def storage_is_remote(self) -> bool:
        """Whether checkpoints, or cached activations, are kept in a bucket and not in a folder."""
        return any(not url.startswith("file:") for url in self._of_files())

    def _of_files(self) -> tuple[str, str]:
        return self.resolved_storage_url(), self.resolved_cache_url()

    def readable_roots(self) -> tuple[Path, ...]:
        """The folders below which a job may read files."""
        demo = Path(__file__).parent / "demo"
        return tuple(root.expanduser().resolve() for root in (*self.allowed_roots, self.data_dir, demo, Path.cwd()))

    def closed_folders(self) -> tuple[Path, ...]:
        """The folders that no job may read: those with the files of all jobs, where a project is to see its own only."""
        if not self.projects:
            return ()
        local = (Path(unquote(urlsplit(url).path)) for url in self._of_files() if url.startswith("file:"))
        return tuple(folder.expanduser().resolve() for folder in (self.data_dir, *local))


OF_CLIENTS = frozenset({"URL", "API_KEY"})
"""What the command line reads, under the same prefix."""


def load(data_dir: Path | None = None) -> Settings:
    """The settings in force. Raises InvalidSetting, with a line for each variable that is wrong."""
    given: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = {str(found["loc"][0]): found["msg"].removeprefix("Value error, ") for found in error.errors(include_url=False)}
    except SettingsError as error:
        # A list that is no JSON; only the text says which.
        wrong = dict.fromkeys(re.findall(r'field "(\w+)"', str(error)), "This is not JSON")
    raise InvalidSetting("\n".join(_said(name, message) for name, message in wrong.items()))


def _said(name: str, message: str) -> str:
    return f"{PREFIX}{name.upper()}: {message.rstrip('.')}. It is: {Settings.model_fields[name].description}"


def unknown_variables() -> list[str]:
    """A sentence for each SAE_SERVICE_* variable that is none of ours. No error: Kubernetes sets such ones for its services."""
    known = sorted(OF_CLIENTS | {name.upper() for name in Settings.model_fields})
    given = (name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX))
    found = []
    for name in sorted(set(given) - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1)
        found.append(f"{PREFIX}{name} is no setting and is ignored." + (f" Did you mean {PREFIX}{nearest[0]}?" if nearest else ""))
    return found


def child_environment(settings: Settings, device: str | None) -> dict[str, str]:
    """The environment for a training process, fixed before its Python starts.

    What a job has compiled, the next one of its kind finds in the data folder.
    torch and JAX share one GPU by agreement: JAX preallocates its share, torch takes what it needs of the rest.
    Thread counts are set on purpose: torch's threads spin while they wait, which starves JAX's.
    It has no settings but the data folder, by which it can be told whose it is: what it needs comes with its assignment.
    The database's address and the keys are none of its business, nor a cloud's unless the storage is there.

    Args:
        device: value of CUDA_VISIBLE_DEVICES, or None to inherit it.
    """
    threads = str(settings.torch_threads)
    withheld = OWN if settings.storage_is_remote() else (*OWN, *CLOUD)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str((settings.data_dir / "compiled").resolve()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(COMPILED_BYTES),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **{name: value for name, value in os.environ.items() if not name.startswith(withheld) or name == f"{PREFIX}DATA_DIR"},
        "XLA_CLIENT_MEM_FRACTION": str(settings.gpu_memory_fraction),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    return environment if device is None else {**environment, "CUDA_VISIBLE_DEVICES": device}


def is_secret(name: str) -> bool:
    """Whether the value of a setting or a variable of this name is to be shown to nobody."""
    return SECRET.search(name) is not None


def environment(changes: dict[str, str | None]) -> dict[str, str]:
    """This process's environment with settings replaced, for a process of the service; None leaves a setting."""
    changed = {f"{PREFIX}{name}": value for name, value in changes.items() if value is not None}
    return {**os.environ, **changed}


def jax_memory_share() -> float:
    """The share of a GPU's memory that JAX takes in this process; torch has the rest."""
    return float(os.environ.get("XLA_CLIENT_MEM_FRACTION", "0.75"))


def is_offline() -> bool:
    """Whether the user has forbidden the Hugging Face libraries to use the network."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"}


def hub_host() -> str:
    """The host name of the model hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return endpoint.split("://")[-1].split("/")[0]
