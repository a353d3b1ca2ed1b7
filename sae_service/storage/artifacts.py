"""The files of one trained SAE: its weights, its figures, and where it comes from.

The weights are in the layout of SAELens. Of what SAELens has no class for (crosscoders, and transcoders with k) they are
in the same files under a name of our own; `formats.saelens` says which. SAELens refuses such files by that name.
"""

import json
import math
from typing import Any

from sae_service.formats import FORMATS, saelens
from sae_service.formats.file_format import Description
from sae_service.sae.inference import InferenceSAE
from sae_service.spec import JobSpec, SAESpec
from sae_service.storage import arrays
from sae_service.storage.objects import Content

CONFIG, WEIGHTS, METRICS, PROVENANCE = saelens.CONFIG, saelens.WEIGHTS, "metrics.json", "provenance.json"


def description(job: JobSpec, spec: SAESpec) -> Description:
    """What a file format may say about an SAE of `job`."""
    return Description(
        reads=spec.reads,
        writes=spec.writes,
        model_name=job.stream.model.name if job.stream.model else "synthetic",
        dataset_path=job.stream.dataset.path if job.stream.dataset else "synthetic",
        context_size=job.stream.context_size,
        architecture=spec.architecture.kind,
        details=spec.architecture.model_dump(),
    )


def to_files(sae: InferenceSAE, job: JobSpec, spec: SAESpec, provenance: dict[str, Any]) -> dict[str, Content]:
    """The files of one SAE by name. The weights are read when they are written, one array at a time."""
    config, tensors = saelens.content(sae, description(job, spec))
    return {CONFIG: config, WEIGHTS: arrays.to_parts(tensors), PROVENANCE: json.dumps(provenance, indent=1).encode()}


def from_files(files: dict[str, bytes]) -> InferenceSAE:
    """The SAE in `files` that `to_files` wrote. Raises DamagedCheckpoint."""
    return saelens.from_files(files)


def converted(files: dict[str, bytes], job: JobSpec, spec: SAESpec, format: str) -> dict[str, bytes]:
    """The files of the same SAE in another format, its figures and its provenance beside them.

    Raises InvalidSpec for an SAE that the format cannot hold.
    """
    beside = {name: files[name] for name in (METRICS, PROVENANCE) if name in files}
    return FORMATS[format].to_files(from_files(files), description(job, spec)) | beside


def as_json(metrics: dict[str, Any]) -> bytes:
    """Metrics as strict JSON."""
    return json.dumps(finite_or_null(metrics), indent=1).encode()


def finite_or_null(value: Any) -> Any:
    """`value` with None in place of every NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
