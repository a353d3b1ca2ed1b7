"""A training job as its user writes it: one activation stream and the SAEs that train on it.

Everything that can be checked without a model or text is checked here, with the path of the field to blame.
A parsed spec has no gaps: what the user left out is filled in, so the stored spec says all that was done.
"""

from sae_service.spec.job import CheckpointSpec, EvaluationSpec, JobSpec, Labels
from sae_service.spec.saes import InitialSpec, SAESpec, Shard
from sae_service.spec.stream import DatasetSpec, ModelSpec, StreamSpec, SyntheticSpec, is_path

__all__ = [
    "CheckpointSpec",
    "DatasetSpec",
    "EvaluationSpec",
    "InitialSpec",
    "JobSpec",
    "Labels",
    "ModelSpec",
    "SAESpec",
    "Shard",
    "StreamSpec",
    "SyntheticSpec",
    "is_path",
]
