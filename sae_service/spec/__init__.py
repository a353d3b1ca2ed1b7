"""Jobs as their users write them: one that trains SAEs on an activation stream (`job.py`), and others that look at SAEs.

Everything that can be checked without a model or text is checked here, with the path of the field to blame.
A parsed spec has no gaps: what the user left out is filled in, so the stored spec says all that was done.
"""

from sae_service.spec.attribution import AttributionSpec
from sae_service.spec.job import EvaluationSpec, JobSpec
from sae_service.spec.latents import FolderSpec, LatentsPart, LatentsSpec
from sae_service.spec.prompted import PromptedSpec
from sae_service.spec.queued import CheckpointSpec, Labels
from sae_service.spec.saes import InitialSpec, SAESpec, Shard
from sae_service.spec.statistics import StatisticsSpec
from sae_service.spec.steering import SteeringSpec
from sae_service.spec.stream import DatasetSpec, ModelSpec, StreamSpec, SyntheticSpec, is_path

__all__ = [
    "AttributionSpec",
    "CheckpointSpec",
    "DatasetSpec",
    "EvaluationSpec",
    "FolderSpec",
    "InitialSpec",
    "JobSpec",
    "Labels",
    "LatentsPart",
    "LatentsSpec",
    "ModelSpec",
    "PromptedSpec",
    "SAESpec",
    "Shard",
    "StatisticsSpec",
    "SteeringSpec",
    "StreamSpec",
    "SyntheticSpec",
    "is_path",
]
