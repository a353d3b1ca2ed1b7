"""Checkpoints are written behind training's back, one at a time, and no error is lost."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.errors import StorageFailure
from sae_service.storage.checkpoint_writer import CheckpointWriter, snapshot


def test_a_snapshot_does_not_change_when_its_original_is_consumed() -> None:
    state: Any = {"a": jnp.arange(4.0)}
    copy = snapshot(state)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = step(state)
    np.testing.assert_array_equal(copy["a"], [0, 1, 2, 3])
    np.testing.assert_array_equal(state["a"], [1, 2, 3, 4])


def test_training_goes_on_while_a_checkpoint_is_written_and_waits_only_for_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer, waits, order, now = CheckpointWriter(), threading.Event(), list[str](), [0.0]

    def clock() -> float:
        if "training" in order:
            waits.set()
        return now[0]

    def first() -> None:
        assert waits.wait(10), "training never came to wait"
        order.append("first written")
        now[0] += 5

    monkeypatch.setattr("sae_service.storage.checkpoint_writer.time", SimpleNamespace(monotonic=clock))
    writer.write(lambda: first)
    order.append("training")
    writer.write(lambda: lambda: order.append("second written"))
    writer.finish()
    assert order == ["training", "first written", "second written"]
    assert writer.waited_s == 5


def test_an_error_of_a_write_is_raised_at_the_next_one_or_at_the_end() -> None:
    def fails() -> None:
        raise StorageFailure("the disk is full")

    writer = CheckpointWriter()
    writer.write(lambda: fails)
    with pytest.raises(StorageFailure):
        writer.write(lambda: fails)
    writer.write(lambda: fails)
    with pytest.raises(StorageFailure):
        writer.finish()
    writer.finish()


def check_again_and_again(writer: CheckpointWriter) -> None:
    for _ in range(1000):
        writer.check()
        time.sleep(0.01)


def test_a_write_that_has_failed_is_noticed_without_waiting_for_one_that_has_not() -> None:
    writer, may_fail = CheckpointWriter(), threading.Event()

    def fails() -> None:
        may_fail.wait(10)
        raise StorageFailure("the disk is full")

    writer.check()
    writer.write(lambda: fails)
    writer.check()
    may_fail.set()
    with pytest.raises(StorageFailure):
        check_again_and_again(writer)


def test_closing_waits_for_the_write_in_hand_and_hides_no_other_error() -> None:
    writer, written = CheckpointWriter(), list[str]()
    writer.write(lambda: lambda: written.append("all of it"))
    writer.close()
    assert written == ["all of it"]
