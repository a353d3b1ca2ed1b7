"""SAEs trained on cached rows are those trained on the model's own, to the last byte."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sae_service.errors import SAEServiceError
from sae_service.storage.cache import ActivationCache
from tests.cached_streams import HOOKS, spec
from tests.recorder import Recorder
from tests.small_jobs import train, weights


def trained(folder: Path, cache: ActivationCache | None, mode: str, **further: Any) -> tuple[Any, dict[str, str]]:
    """What a job of two hook points reports, and the hashes of its final arrays."""
    recorder, files = train(folder, spec(cache=mode).model_dump(mode="json"), cache=cache, **further)
    return recorder, {path: hashlib.sha256(content).hexdigest() for path, content in weights(files).items()}


def interrupted(folder: Path, cache: ActivationCache, modes: tuple[str, str], stop_after: int) -> dict[str, str]:
    """The same of a job that was stopped after so many steps, and went on as another process would."""
    recorder, _ = trained(folder, cache, modes[0], stop_after=stop_after)
    _, found = trained(folder, cache, modes[1], resume_from=(recorder.checkpoints[-1].key,))
    return found


def test_training_from_the_cache_gives_the_bytes_of_training_live(tmp_path: Path, cache: ActivationCache) -> None:
    _, live = trained(tmp_path / "off", None, "off")
    assert "state/arrays.safetensors" in live
    for mode, share in (("fill", "0.0%"), ("use", "100.0%"), ("fill", "100.0%")):
        recorder, found = trained(tmp_path / f"{mode}{share}", cache, mode)
        assert found == live
        assert [text.split()[0] for _, text in recorder.events if "came from the activation cache" in text] == [share]


def test_a_job_that_was_interrupted_ends_with_the_same_bytes_whatever_is_cached(tmp_path: Path, cache: ActivationCache) -> None:
    _, live = trained(tmp_path / "off", None, "off")
    assert interrupted(tmp_path / "a", cache, ("fill", "fill"), stop_after=9) == live
    assert interrupted(tmp_path / "b", cache, ("use", "off"), stop_after=14) == live
    for stream in cache.streams():
        cache.delete(stream.id)
    assert interrupted(tmp_path / "c", cache, ("off", "fill"), stop_after=11) == live
    assert interrupted(tmp_path / "d", cache, ("fill", "use"), stop_after=5) == live


def test_provenance_says_that_rows_were_rounded(tmp_path: Path, cache: ActivationCache) -> None:
    job = spec(HOOKS[:1], cache="fill", cache_dtype="int8", tokens=512).model_dump(mode="json")
    _, files = train(tmp_path / "a", job, cache=cache)
    assert json.loads(files["saes/at_0/provenance.json"])["rows_rounded_to"] == "int8"


def test_a_job_that_ends_before_it_trains_ends_its_reading_too(tmp_path: Path, cache: ActivationCache) -> None:
    job = spec(HOOKS[:1], cache="use").model_dump(mode="json")
    job["saes"][0]["initial"] = {"path": str(tmp_path / "nothing")}
    recorder = Recorder()
    with pytest.raises(SAEServiceError):
        train(tmp_path / "a", job, recorder=recorder, cache=cache)
    assert ("info", "0.0% of the 0 rows that were read came from the activation cache.") in recorder.events
