"""A training job that looks at the latents of its own SAEs finds what a later look finds, and a stop changes no byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_service import kinds
from sae_service.analysis.look import Look
from sae_service.spec import JobSpec, LatentsSpec
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.published import published
from tests.recorder import Recorder
from tests.small_jobs import small_job, train, weights

PART = {"tokens": 8192, "best": 4, "per_quantile": 1, "passage_tokens": 32}
N_BATCHES, N_STEPS = 8192 // (4 * 128), 24


def with_part(**part: Any) -> dict[str, Any]:
    return small_job() | {"latents": PART | part, "log_every": 4, "checkpoints": {"every_tokens": 4 * 512}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, dict[str, bytes], Storage]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return *train(folder, with_part()), Storage(folder.as_uri())


def of_latents(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if Path(path).name.startswith("latents")}


def comparable(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but what says how long something took."""
    return {path: content for path, content in files.items() if not path.endswith("metrics.json")}


def test_the_files_of_latents_lie_beside_each_sae(undisturbed: tuple[Recorder, dict[str, bytes], Storage]) -> None:
    recorder, files, _ = undisturbed
    final = recorder.checkpoints[-1]
    names = ("cfg.json", "latents.json", "latents.safetensors", "metrics.json", "provenance.json", "sae_weights.safetensors")
    assert sorted(path for path in files if path.startswith("saes/gated_256/")) == [f"saes/gated_256/{name}" for name in names]
    assert (final.is_final, final.step, final.tokens) == (True, N_STEPS, N_STEPS * 256)
    assert len(of_latents(files)) == 6


def test_the_trained_saes_do_not_depend_on_the_part(
    undisturbed: tuple[Recorder, dict[str, bytes], Storage], tmp_path: Path
) -> None:
    _, without = train(tmp_path, with_part() | {"latents": None})
    assert weights(without) == {path: content for path, content in weights(undisturbed[1]).items() if "latents" not in path}


def test_it_finds_what_a_later_look_at_the_same_saes_finds(undisturbed: tuple[Recorder, dict[str, bytes], Storage]) -> None:
    recorder, files, storage = undisturbed
    job = JobSpec.model_validate(with_part())
    names = [sae.name for sae in job.saes]
    spec = {"kind": "latents", "job": "job_x", "saes": names, "stream": job.stream.model_dump(mode="json"), **PART}
    around = Surroundings(storage, "jobs/look", Recorder(), begin_with=recorder.checkpoints[-1].key)
    final = kinds.run(LatentsSpec.model_validate(spec), around)
    assert final is not None
    assert of_latents(published(storage, final.key)) == of_latents(files)


def test_it_says_how_far_it_is_behind_the_steps_of_training(undisturbed: tuple[Recorder, dict[str, bytes], Storage]) -> None:
    recorder = undisturbed[0]
    job = JobSpec.model_validate(with_part())
    rows = [row for row in recorder.rows if "never_fired_share" in row]
    assert [row["step"] for row in rows if row["sae"] == "gated_256"] == [N_STEPS + 4 * n for n in (1, 2, 3, 4)] + [N_STEPS + 16]
    assert (rows[-1]["step"], rows[-1]["tokens"]) == (job.total_steps, job.total_tokens) == (N_STEPS + N_BATCHES, 24 * 256 + 8192)
    assert "Looking at latents on 8,192 tokens of text." in [message for _, message in recorder.events]


@pytest.mark.parametrize("stop_after", [0, 5, N_BATCHES + 2])
def test_a_stop_in_the_middle_of_the_look_changes_no_byte(
    undisturbed: tuple[Recorder, dict[str, bytes], Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    asked, messages = [0], Recorder()

    def should_stop() -> bool:
        is_looking = any("Looking at latents" in message for _, message in messages.events)
        asked[0] += is_looking
        return is_looking and asked[0] > stop_after

    storage = Storage(tmp_path.as_uri())
    job = JobSpec.model_validate(with_part())
    assert kinds.run(job, Surroundings(storage, "jobs/test", messages, should_stop)) is None
    last = messages.checkpoints[-1]
    assert (last.is_final, last.step, last.tokens) == (False, N_STEPS + min(stop_after, N_BATCHES), N_STEPS * 256)
    assert last.metrics["gated_256"]["tokens_per_s"] > 0, "a download meanwhile has figures"
    keys, resumed = tuple(written.key for written in reversed(messages.checkpoints)), Recorder()
    monkeypatch.setattr(Look, "batches", only(Look.batches, N_BATCHES - min(stop_after, N_BATCHES)))
    final = kinds.run(job, Surroundings(storage, "jobs/test", resumed, resume_from=keys))
    assert final is not None
    assert final.metrics == last.metrics, "nothing is measured twice"
    assert comparable(published(storage, final.key)) == comparable(undisturbed[1])


def only(batches: Callable[..., Any], n: int) -> Callable[..., Any]:
    """Batches, of which there may be `n`."""

    def counted(look: Look) -> Any:
        found = list(batches(look))
        assert len(found) == n
        return iter(found)

    return counted
