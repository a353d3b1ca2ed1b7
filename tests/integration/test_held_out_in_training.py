"""Held-out figures in the middle of training: when they come, that they change nothing, and what a stop does to them."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from sae_service import pipeline
from sae_service.activations.model import LanguageModel
from sae_service.demo.make_language_model import MODEL, TEXT
from sae_service.errors import DataNotFound, NonFiniteLoss
from sae_service.evaluation.on_synthetic import HeldOutRows
from sae_service.spec import JobSpec
from sae_service.storage import checkpoint
from sae_service.storage.objects import Storage
from tests.published import published
from tests.recorder import Recorder
from tests.small_jobs import weights
from tests.synthetic_jobs import BATCH, FILL, job, train

STEPS = 3 * FILL
MEASURED = (FILL, 2 * FILL)


def spec(**changes: Any) -> JobSpec:
    evaluation = {"tokens": 512, "every_tokens": FILL * BATCH}
    return JobSpec.model_validate(job(STEPS, evaluation=evaluation) | changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, train(folder, spec())[0]


def measured_rows(recorder: Recorder) -> list[dict[str, Any]]:
    return [row for row in recorder.rows if "held_out" in row]


def test_the_figures_come_with_the_metrics_and_with_a_checkpoint_each(undisturbed: tuple[Path, Recorder]) -> None:
    _, recorder = undisturbed
    assert [row["step"] for row in measured_rows(recorder)] == [step for step in MEASURED for _ in range(2)]
    by_step = {written.step: written for written in recorder.checkpoints}
    assert sorted(by_step) == [8, 10, 16, 20, STEPS]
    for row in measured_rows(recorder):
        figures = by_step[row["step"]].metrics[row["sae"]]
        assert row["held_out"] == figures
        assert 0 < figures["fvu"] < 2
        assert figures["dead_share"] == row["dead_share"]
    assert {written.step: bool(written.metrics) for written in recorder.checkpoints} == {
        8: True, 10: False, 16: True, 20: False, STEPS: True,
    }  # fmt: skip
    assert [written.is_final for written in recorder.checkpoints].count(True) == 1


def test_the_figures_are_those_of_a_job_that_ends_there(undisturbed: tuple[Path, Recorder], tmp_path: Path) -> None:
    _, recorder = undisturbed
    shorter, _ = train(tmp_path, JobSpec.model_validate(job(2 * FILL, evaluation={"tokens": 512})))
    for row in measured_rows(recorder):
        if row["step"] == 2 * FILL:
            expected = shorter.checkpoints[-1].metrics[row["sae"]]
            assert {name: row["held_out"][name] for name in ("fvu", "l0")} == {name: expected[name] for name in ("fvu", "l0")}


def test_being_measured_changes_no_weight(undisturbed: tuple[Path, Recorder], tmp_path: Path) -> None:
    folder, recorder = undisturbed
    _, files = train(tmp_path, JobSpec.model_validate(job(STEPS)))
    assert weights(files) == weights(published(Storage(folder.as_uri()), recorder.checkpoints[-1].key))


@pytest.mark.parametrize("n_chunks", [0, 4])
def test_a_job_that_is_stopped_while_it_is_measured_is_measured_when_it_goes_on(
    undisturbed: tuple[Path, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_chunks: int
) -> None:
    # After so many chunks of rows: before the first SAE has been measured, or in the middle of the second.
    folder, expected = undisturbed
    storage, recorder, is_told = Storage(tmp_path.as_uri()), Recorder(), [False]
    really = HeldOutRows.evaluate

    def told_to_stop(held_out: Any, saes: Any, should_stop: Any) -> Any:
        asked = itertools.count()

        def stops() -> bool:
            is_told[0] = is_told[0] or (len(measured_rows(recorder)) == 2 and next(asked) >= n_chunks)
            return should_stop()

        return really(held_out, saes, stops)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(HeldOutRows, "evaluate", told_to_stop)
        assert pipeline.run(spec(), storage, "jobs/test", recorder, lambda: is_told[0]) is None
    assert (recorder.checkpoints[-1].step, recorder.checkpoints[-1].metrics) == (2 * FILL, {})
    assert pipeline.run(spec(), storage, "jobs/test", recorder, resume_from=[recorder.checkpoints[-1].key]) is not None
    assert without_speed(recorder.rows) == without_speed(expected.rows)
    assert min(row["tokens_per_s"] for row in recorder.rows) >= 0

    def kept(folder: Path, found: Recorder) -> dict[int, tuple[Any, ...]]:
        """What each checkpoint holds, the last of those of one step."""
        stored = Storage(folder.as_uri())
        files = {written.step: published(stored, written.key) for written in found.checkpoints}
        return {step: tuple(found[name] for name in (checkpoint.ARRAYS, checkpoint.VALUES)) for step, found in files.items()}

    assert kept(tmp_path, recorder) == kept(folder, expected)


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def timeless(row: dict[str, Any]) -> dict[str, Any]:
        return {
            name: timeless(value) if name == "held_out" else value for name, value in row.items() if name != "tokens_per_s"
        }

    return [timeless(row) for row in rows]


def test_a_checkpoint_has_a_score_once_every_sparsity_penalty_is_at_its_full_strength(tmp_path: Path) -> None:
    changed = spec().model_dump()
    changed["saes"][0]["optimizer"]["sparsity_warm_up"] = 12
    recorder, _ = train(tmp_path, JobSpec.model_validate(changed))
    scores = {written.step: written.score for written in recorder.checkpoints}
    assert [step for step, score in scores.items() if score is not None] == [2 * FILL, STEPS]
    final = recorder.checkpoints[-1]
    assert final.score == pytest.approx(sum(figures["fvu"] for figures in final.metrics.values()) / 2)


def test_the_losses_that_no_sae_changes_are_computed_once_for_all_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("zeroed_losses", "spliced_losses"):
        really = getattr(LanguageModel, name)

        def counted(*arguments: Any, really: Any = really, name: str = name) -> Any:
            calls.append(name)
            return really(*arguments)

        monkeypatch.setattr(LanguageModel, name, counted)
    found = JobSpec.model_validate({
        "stream": {
            "model": {"name": str(MODEL)}, "dataset": {"path": str(TEXT)}, "tokens": 4 * 256, "batch": 256, "context_size": 64,
            "prompts": 4,
        },
        "saes": [{"hook_name": "blocks.1.hook_resid_post", "architecture": {"kind": "topk", "d_sae": 64, "k": 8}}],
        "evaluation": {"tokens": 1024, "every_tokens": 256},
    })  # fmt: skip
    recorder, _ = train(tmp_path, found)
    assert [row["step"] for row in measured_rows(recorder)] == [1, 2, 3]
    batches = 1024 // 256
    assert (calls.count("zeroed_losses"), calls.count("spliced_losses")) == (2 * batches, 4 * batches)


def test_a_loss_that_explodes_is_seen_before_it_is_measured(tmp_path: Path) -> None:
    changed = spec(log_every=1000).model_dump()
    changed["saes"][0]["optimizer"]["lr"] = 1e30
    with pytest.raises(NonFiniteLoss):
        train(tmp_path, JobSpec.model_validate(changed))


def test_what_was_trained_before_an_evaluation_fails_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise DataNotFound("the held-out rows have gone")

    monkeypatch.setattr(HeldOutRows, "evaluate", fails)
    recorder = Recorder()
    with pytest.raises(DataNotFound):
        pipeline.run(spec(), Storage(tmp_path.as_uri()), "jobs/test", recorder)
    assert [written.step for written in recorder.checkpoints] == [FILL]
