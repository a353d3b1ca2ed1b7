"""An SAE in a folder, in whichever format somebody has written it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sae_service.errors import InvalidSpec
from sae_service.formats import FORMATS
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites


def read(folder: Path, format: str) -> dict[str, bytes]:
    """The content of a format's files by name. Raises InvalidSpec if one is missing or cannot be read."""
    try:
        return {name: (folder / name).read_bytes() for name in FORMATS[format].files}
    except OSError as error:
        wanted = " and ".join(FORMATS[format].files)
        raise InvalidSpec(f"{folder} holds no SAE in the format {format}, which is {wanted}: {error.strerror}") from error


def load(folder: Path, format: str | None = None) -> InferenceSAE:
    """The SAE in a folder. Without a format, it is the one whose files are there.

    Raises InvalidSpec, or DamagedCheckpoint for content that is broken.
    """
    format = format or detected(folder)
    return FORMATS[format].from_files(read(folder, format))


def check_autoencoder(sae: InferenceSAE, place: str) -> None:
    """Raises InvalidSpec if the SAE from `place` does not write the one hook point that it reads, as far as its file says."""
    if sae.sites is not None and not (sae.sites.is_autoencoder and len(sae.sites.read) == 1):
        raise InvalidSpec(f"{place} holds {in_words(sae.sites)}.", hint="An SAE of one hook point is wanted.")


def in_words(sites: Sites) -> str:
    """What something with these sites is."""
    read, write = (", ".join(name for name, _ in widths) for widths in (sites.read, sites.write))
    several = max(len(sites.read), len(sites.write)) > 1
    if sites.is_autoencoder:
        return f"a crosscoder, which reads and writes {read}" if several else f"an SAE of {read}"
    return f"a {'crosscoder' if several else 'transcoder'}, which reads {read} and writes {write}"


def detected(folder: Path) -> str:
    """The one format whose files are all in the folder. Raises InvalidSpec if there is none, or several."""
    found = [name for name, format in FORMATS.items() if all((folder / file).is_file() for file in format.files)]
    if len(found) == 1:
        return found[0]
    if found:
        hint = "Name one with --format (--other-format for the second SAE)."
        raise InvalidSpec(f"{folder} holds an SAE in several formats: {', '.join(found)}", hint=hint)
    known = "; ".join(f"{name}: {', '.join(format.files)}" for name, format in FORMATS.items())
    raise InvalidSpec(f"{folder} holds no SAE.", hint=f"The files of each format are {known}.")


def digest(files: Mapping[str, bytes]) -> str:
    """One SHA-256 for several files, that of the list of theirs: `sha256sum FILES | sha256sum`, FILES sorted by name."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
