"""Jobs that go on from the checkpoint of another one: extended, forked, tried again."""

import copy
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sae_service import pipeline
from sae_service.continuation import Changes, continued
from sae_service.errors import DamagedCheckpoint, DataNotFound, InvalidSpec, StorageFailure
from sae_service.evaluation.on_synthetic import HeldOutRows
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.published import published
from tests.recorder import Recorder
from tests.small_jobs import weights
from tests.synthetic_jobs import BATCH, FILL, job, train


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder, JobSpec]:
    folder, spec = tmp_path_factory.mktemp("short"), JobSpec.model_validate(job(3 * FILL))
    return folder, train(folder, spec)[0], spec


def test_an_extended_job_ends_with_the_bytes_of_one_that_was_as_long_from_the_beginning(
    short: tuple[Path, Recorder, JobSpec], tmp_path: Path
) -> None:
    folder, recorder, spec = short
    final = recorder.checkpoints[-1]
    longer = continued(spec, Changes(tokens=5 * FILL * BATCH), final.tokens)
    extended, files = train(folder, longer, begin_with=final.key)
    _, expected = train(tmp_path, JobSpec.model_validate(job(5 * FILL)))
    assert weights(files) == weights(expected)
    assert extended.rows[0]["step"] == 3 * FILL + 1


def test_an_extension_goes_on_behind_a_last_fill_that_was_cut_short(tmp_path: Path) -> None:
    spec = JobSpec.model_validate(job(2 * FILL + 3))
    final = train(tmp_path, spec)[0].checkpoints[-1]
    longer = continued(spec, Changes(tokens=4 * FILL * BATCH), final.tokens)
    recorder, _ = train(tmp_path, longer, begin_with=final.key)
    assert recorder.checkpoints[-1].step == 4 * FILL
    again, _ = train(tmp_path, longer, begin_with=final.key)
    assert again.rows[-1]["loss"] == recorder.rows[-1]["loss"]


def test_a_job_that_is_tried_again_from_its_checkpoint_ends_with_the_same_bytes(
    short: tuple[Path, Recorder, JobSpec],
) -> None:
    folder, recorder, spec = short
    middle = recorder.checkpoints[0]
    assert middle.step == 10
    again, files = train(folder, continued(spec, Changes(), middle.tokens), begin_with=middle.key)
    assert weights(files) == weights(published(Storage(folder.as_uri()), recorder.checkpoints[-1].key))
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in recorder.rows if row["step"] > middle.step]


def test_a_job_that_was_trained_but_not_evaluated_is_tried_again_without_a_step(
    short: tuple[Path, Recorder, JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recorder, spec = short

    def fails(*_: Any) -> None:
        raise DataNotFound("the held-out rows have gone")

    with monkeypatch.context() as broken:
        broken.setattr(HeldOutRows, "evaluate", fails)
        with pytest.raises(DataNotFound):
            train(tmp_path, spec)
    (saved,) = tmp_path.glob(f"jobs/test/step-*{3 * FILL}-*")
    changes = Changes.model_validate({"evaluation": {"tokens": 1024}})
    again, files = train(tmp_path, continued(spec, changes, 3 * FILL * BATCH), str(saved.relative_to(tmp_path)))
    assert again.rows == []
    assert weights(files) == weights(published(Storage(folder.as_uri()), recorder.checkpoints[-1].key))


def test_a_job_can_be_cut_short_to_where_it_is_unless_it_was_evaluated_there(
    short: tuple[Path, Recorder, JobSpec],
) -> None:
    folder, recorder, spec = short
    middle, here = recorder.checkpoints[0], Changes(tokens=10 * BATCH)
    shortened, _ = train(folder, continued(spec, here, middle.tokens), begin_with=middle.key)
    assert (shortened.checkpoints[-1].step, shortened.rows) == (middle.step, [])
    with pytest.raises(InvalidSpec, match=f"at least {11 * BATCH}"):
        continued(spec, here, middle.tokens, is_final=True)


def test_a_fork_trains_with_other_numbers_from_the_same_state(short: tuple[Path, Recorder, JobSpec]) -> None:
    folder, recorder, spec = short
    middle = recorder.checkpoints[0]
    changes = Changes.model_validate({"saes": {"standard": {"architecture": {"l1_coefficient": 5.0}}}})
    forked, _ = train(folder, continued(spec, changes, middle.tokens), begin_with=middle.key)

    def last(of: Recorder, sae: str) -> dict[str, Any]:
        return [row for row in of.rows if row["sae"] == sae][-1]

    assert last(forked, "standard")["l0"] < last(recorder, "standard")["l0"]
    assert last(forked, "batchtopk")["loss"] == last(recorder, "batchtopk")["loss"]


def test_a_fork_whose_checkpoint_is_damaged_fails_in_place_of_beginning_anew(
    short: tuple[Path, Recorder, JobSpec], tmp_path: Path
) -> None:
    folder, recorder, spec = short
    key = recorder.checkpoints[0].key
    copied = tmp_path / key / "state"
    copied.mkdir(parents=True)
    (tmp_path / key / "manifest.json").write_bytes((folder / key / "manifest.json").read_bytes())
    with pytest.raises(DamagedCheckpoint):
        train(tmp_path, continued(spec, Changes(), recorder.checkpoints[0].tokens), begin_with=key)


def test_a_fork_that_meets_another_storage_than_its_checkpoint_was_written_to_is_tried_again(
    short: tuple[Path, Recorder, JobSpec], tmp_path: Path
) -> None:
    _, recorder, spec = short
    first = recorder.checkpoints[0]
    with pytest.raises(StorageFailure, match="SAE_SERVICE_STORAGE_URL") as caught:
        train(tmp_path, continued(spec, Changes(), first.tokens), begin_with=first.key)
    assert caught.value.retryable


def test_the_speed_of_training_is_not_that_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = HeldOutRows.evaluate

    def slow(*arguments: Any) -> Any:
        time.sleep(3)
        return really(*arguments)

    monkeypatch.setattr(HeldOutRows, "evaluate", slow)
    recorder, _ = train(tmp_path, JobSpec.model_validate(job(3 * FILL)))
    assert recorder.checkpoints[-1].metrics["standard"]["tokens_per_s"] > 0.5 * recorder.rows[-1]["tokens_per_s"]


def test_a_job_whose_checkpoint_cannot_be_written_does_not_train_until_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, steps = pipeline.Trainer.step, list[int]()

    def slow(trainer: pipeline.Trainer, rows: Any) -> None:
        really(trainer, rows)
        steps.append(trainer.n_steps)
        if trainer.n_steps > 10:
            time.sleep(0.3)

    def full(*_: Any) -> None:
        raise StorageFailure("the disk is full")

    monkeypatch.setattr(pipeline.Trainer, "step", slow)
    monkeypatch.setattr(Storage, "publish", full)
    with pytest.raises(StorageFailure):
        train(tmp_path, JobSpec.model_validate(job(3 * FILL)))
    assert 10 <= steps[-1] < 20


def test_a_job_whose_weights_to_start_from_are_missing_leaves_no_thread_behind(tmp_path: Path) -> None:
    spec = job(3 * FILL)
    spec["saes"][0]["initial"] = {"path": str(tmp_path / "missing")}
    with pytest.raises(InvalidSpec):
        train(tmp_path, JobSpec.model_validate(spec))
    assert "harvest" not in {thread.name for thread in threading.enumerate()}


def test_saes_on_two_devices_end_with_the_bytes_of_one(short: tuple[Path, Recorder, JobSpec], tmp_path: Path) -> None:
    folder, recorder, _ = short
    code = f"""
from pathlib import Path
import jax
from sae_service.spec import JobSpec
from tests.synthetic_jobs import FILL, job, train
recorder, _ = train(Path({str(tmp_path)!r}), JobSpec.model_validate(job(3 * FILL, gpus=2)))
assert len(jax.devices()) == 2
print(recorder.checkpoints[-1].key, [message for level, message in recorder.events if level == "warning"])
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    key, warnings = ended.stdout.split(maxsplit=1)
    assert warnings.strip() == "[]"
    one = published(Storage(folder.as_uri()), recorder.checkpoints[-1].key, below="saes/")
    assert weights(published(Storage(tmp_path.as_uri()), key, below="saes/")) == weights(one)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tokens": 10 * BATCH - 1}, "/tokens"),
        ({"saes": {"other": {}}}, "/saes/other"),
        ({"saes": {"standard": {"architecture": {"d_sae": 64}}}}, "/saes/standard/architecture/d_sae"),
        ({"saes": {"batchtopk": {"architecture": {"kind": "topk"}}}}, "/saes/batchtopk/architecture/kind"),
        ({"saes": {"standard": {"architecture": {"l1": 1.0}}}}, "/saes/standard/architecture/l1"),
        ({"saes": {"standard": {"optimizer": {"lr": -1.0}}}}, "/saes/standard/optimizer/lr"),
        ({"saes": {"standard": {"optimizer": {"momentum": 0.5}}}}, "/saes/standard/optimizer/momentum"),
        ({"saes": {"standard": {"optimizer": {"lr_warm_up": -1}}}}, "/saes/standard/optimizer/lr_warm_up"),
        ({"saes": {"standard": {"architecture": {"resample_at": [-1]}}}}, "/saes/standard/architecture/resample_at/0"),
        ({"evaluation": {"tokens": 1}}, "/evaluation/tokens"),
    ],
)
def test_a_change_that_the_state_cannot_follow_is_refused_with_its_field(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        continued(JobSpec.model_validate(job(3 * FILL)), Changes.model_validate(changes), 10 * BATCH)
    assert refused.value.param == param


def test_what_the_length_decided_stays_when_a_job_becomes_longer() -> None:
    plain = job(800)
    del plain["stream"]["buffer_rows"]
    del plain["saes"][0]["dead_after_tokens"]
    parent = JobSpec.model_validate(copy.deepcopy(plain))
    longer = continued(parent, Changes(tokens=10 * 800 * BATCH), 800 * BATCH)
    assert longer.stream.steps_per_fill == parent.stream.steps_per_fill
    assert longer.dead_after_tokens(longer.saes[0]) == parent.dead_after_tokens(parent.saes[0])


def test_a_field_of_a_part_that_is_left_out_stays() -> None:
    parent = JobSpec.model_validate(job(3 * FILL, metadata={"a": "1"}))
    changes = Changes.model_validate({"checkpoints": {"keep": 3}, "metadata": {"b": "2"}})
    forked = continued(parent, changes, 10 * BATCH)
    assert forked.checkpoints == parent.checkpoints.model_copy(update={"keep": 3})
    assert forked.metadata == {"b": "2"}
    assert forked.evaluation == parent.evaluation
