"""The SAEs that a job looks at: those of a finished job, or SAEs in folders."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sae_service.activations.model_check import Place
from sae_service.errors import DamagedCheckpoint, located
from sae_service.evaluation.of_folders import sites_of
from sae_service.formats import folder
from sae_service.readable import Roots
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites, check_width
from sae_service.schema import SAES
from sae_service.spec import FolderSpec, LatentsSpec, PromptedSpec
from sae_service.spec.stored import read_training
from sae_service.storage import artifacts, checkpoint
from sae_service.storage.objects import Storage


@dataclass(frozen=True)
class Subject:
    """An SAE on the host, and the hook points that it reads and writes."""

    sae: InferenceSAE
    place: Place

    def placed(self, widths: Mapping[str, int]) -> InferenceSAE:
        """The SAE with its sites. Raises InvalidSpec if the rows there have other widths than it reads and writes."""
        read, write = (tuple((name, widths[name]) for name in names) for names in (self.place.reads, self.place.writes))
        sites = Sites(read, write)
        with located(self.place.param or ""):
            check_width("reads", self.sae.W_enc.shape[0], " and ".join(self.place.reads), sites.d_read)
            check_width("writes", self.sae.W_dec.shape[1], " and ".join(self.place.writes), sites.d_write)
        return self.sae.replace(sites=sites)


@dataclass(frozen=True)
class Subjects:
    """What is looked at.

    Attributes:
        limits: the largest norm of a row that was trained on, by hook point; None if that is to be measured.
    """

    by_name: dict[str, Subject]
    limits: dict[str, float] | None


def subjects(job: LatentsSpec | PromptedSpec, storage: Storage, checkpoint_key: str | None, roots: Roots) -> Subjects:
    """The SAEs of a job.

    Args:
        checkpoint_key: where those of another job are.
        roots: where folders may be.

    Raises:
        InvalidSpec, DamagedCheckpoint, StorageFailure: one cannot be read.
    """
    if job.folders:
        return Subjects({one.name: _in_folder(one, index, roots) for index, one in enumerate(job.folders)}, None)
    if checkpoint_key is None:
        raise DamagedCheckpoint("it is not known where the SAEs of the job are")
    hashes = storage.hashes(checkpoint_key)
    found = {name: _trained(storage, checkpoint_key, hashes, name) for name in job.saes}
    return Subjects(found, checkpoint.read_values(storage, checkpoint_key).get("limits") or {})


def _trained(storage: Storage, key: str, hashes: Mapping[str, str], name: str) -> Subject:
    """One SAE of a checkpoint."""
    below = f"{SAES}{name}/"
    wanted = {f"{below}{file}" for file in (artifacts.CONFIG, artifacts.WEIGHTS, artifacts.PROVENANCE)}
    if not wanted <= hashes.keys():
        raise DamagedCheckpoint(f"{key} has no SAE {name}")
    stored = storage.read(key, {path: hashes[path] for path in wanted})
    files = {path.removeprefix(below): content for path, content in stored.items()}
    spec = read_training(json.loads(files[artifacts.PROVENANCE])["spec"])
    (sae,) = (sae for sae in spec.saes if sae.name == name)
    return Subject(artifacts.from_files(files), Place(sae.reads, sae.writes, "/saes"))


def _in_folder(spec: FolderSpec, index: int, roots: Roots) -> Subject:
    """One SAE in a folder."""
    with located(f"/folders/{index}"):
        sae = folder.load(_path(spec, roots), spec.format)
        sites = sites_of(sae, spec.hook_name)
    return Subject(sae, Place(sites.reads, sites.writes, f"/folders/{index}"))


def _path(spec: FolderSpec, roots: Roots) -> Path:
    """The folder of an SAE. Raises InvalidSpec if it lies outside, or a link in it leads there."""
    path = roots.inside(spec.path, "/path")
    if path.is_dir():
        roots.refuse_links_out_of(path, spec.path, "/path")
    return path
