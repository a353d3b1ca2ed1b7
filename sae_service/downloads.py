"""Files of SAEs that are written to a folder, all of them or none, and never over other ones."""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from sae_service.errors import InvalidSpec, StorageFailure


def inside(folder: Path, paths: Iterable[str]) -> dict[str, Path]:
    """Where files are to lie. Raises StorageFailure for a path that leads out of the folder."""
    targets = {path: folder / path for path in paths}
    for path, target in targets.items():
        if not target.resolve().is_relative_to(folder.resolve()):
            raise StorageFailure(f"the service named a file outside {folder}: {path}")
    return targets


def missing(folder: Path, wanted: Mapping[str, str]) -> dict[str, Path]:
    """Those of the files (path: SHA-256) that are not in the folder yet, and where they are to lie.

    Raises InvalidSpec if another file is in the place of one.
    """
    targets = inside(folder, wanted)
    there = {path for path, target in targets.items() if target.exists()}
    for path in there:
        if not targets[path].is_file() or hashlib.sha256(targets[path].read_bytes()).hexdigest() != wanted[path]:
            raise InvalidSpec(
                f"{targets[path]} is there already and is another file: one of another checkpoint, SAE or format", "folder",
                hint="Nothing was written. Choose another folder.",
            )  # fmt: skip
    return {path: target for path, target in targets.items() if path not in there}


def unpacked(folder: Path, archives: Mapping[str, Path]) -> list[Path]:
    """Writes the files of zip archives, each to the folder of its name in `folder`. Returns their paths.

    Raises InvalidSpec as `missing` does, and StorageFailure.
    """
    found: dict[str, bytes] = {}
    try:
        for name, path in archives.items():
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if Path(member).name != member:
                        raise StorageFailure(f"the service named a file outside {folder / name}: {member}")
                    found[f"{name}/{member}"] = archive.read(member)
        wanted = {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}
        for path, target in missing(folder, wanted).items():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.part")
            partial.write_bytes(found[path])
            partial.replace(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise StorageFailure(f"cannot write the files to {folder}: {error}") from error
    return [folder / path for path in found]
