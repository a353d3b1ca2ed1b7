"""The buffer and the stream: each row once, the same order for all hook points, and any position can be gone back to."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_service.activations.buffer import FillStart, TextHarvest, permutation
from sae_service.activations.model import LanguageModel
from sae_service.activations.stream import ActivationStream, StreamPosition
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.errors import DataNotFound, Stopped
from sae_service.spec import DatasetSpec, StreamSpec
from tests.letters import BOS, Letters

CONTEXT = 5
few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Counting:
    """A harvest whose rows are the natural numbers."""

    def __init__(self, start: FillStart) -> None:
        self._next = start.rows_taken

    def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], FillStart]:
        rows = jnp.arange(self._next, self._next + n_rows, dtype=jnp.float32)[:, None]
        self._next += n_rows
        return {"a": rows, "b": -rows}, FillStart(rows_taken=self._next)


def served(spec: StreamSpec, position: StreamPosition) -> list[tuple[np.ndarray, StreamPosition]]:
    """What the stream serves from a position on, each batch with the position after it."""
    stream = ActivationStream(spec, Counting(position.fill_start), position)
    found = []
    for fill in stream.fills():
        for batch, after in stream.batches(fill):
            np.testing.assert_array_equal(batch["a"], -batch["b"])
            found.append((np.asarray(batch["a"][:, 0]), after))
    stream.close()
    return found


def test_a_stop_is_seen_while_a_fill_is_waited_for_and_the_reading_ends_with_it() -> None:
    reading, threads = threading.Event(), list[threading.Thread]()

    class Slow(Counting):
        def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], FillStart]:
            threads.append(threading.current_thread())
            reading.set()
            while not should_stop():
                time.sleep(0.01)
            raise Stopped

    spec = StreamSpec.model_validate({"synthetic": {"n_features": 4, "d_in": 1}, "tokens": 8, "batch": 4})
    stream = ActivationStream(spec, Slow(FillStart()), StreamPosition())
    assert list(stream.fills(reading.is_set)) == []
    stream.close()
    assert [thread.is_alive() for thread in threads] == [False]


@pytest.mark.parametrize("slow", ["reading", "training"])
def test_the_side_that_waits_for_the_other_is_known(slow: str) -> None:
    n_read, n_fills = 0, 3

    class Paced(Counting):
        def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], FillStart]:
            nonlocal n_read
            time.sleep(0.3 if slow == "reading" else 0)
            n_read += 1
            return super().fill(n_rows)

    synthetic = {"n_features": 4, "d_in": 1}
    spec = StreamSpec.model_validate({"synthetic": synthetic, "tokens": 4 * n_fills, "batch": 4, "buffer_rows": 4})
    stream = ActivationStream(spec, Paced(FillStart()), StreamPosition())
    for index, _ in enumerate(stream.fills()):
        while slow == "training" and n_read < min(index + 2, n_fills):
            time.sleep(0.01)
        time.sleep(0.3 if slow == "training" else 0)
    stream.close()
    waits = {"training": stream.waits.reading_s, "reading": stream.waits.training_s}
    assert waits.pop(slow) > max(0.2, *waits.values())
    assert f"waited {stream.waits.training_s:.2f} s for rows" in stream.waits.said(1.0)


def test_one_fill_is_read_ahead_and_no_more() -> None:
    begun: list[threading.Event] = [threading.Event() for _ in range(3)]

    class Watched(Counting):
        def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], FillStart]:
            next(event for event in begun if not event.is_set()).set()
            return super().fill(n_rows)

    synthetic = {"n_features": 4, "d_in": 1}
    spec = StreamSpec.model_validate({"synthetic": synthetic, "tokens": 12, "batch": 4, "buffer_rows": 4})
    stream = ActivationStream(spec, Watched(FillStart()), StreamPosition())
    fills = stream.fills()
    next(fills)
    assert begun[1].wait(10)
    assert not begun[2].wait(0.5), "the one after the next has its turn when the next one is in use"
    next(fills)
    assert begun[2].wait(10)
    stream.close()


def test_the_error_of_a_fill_comes_to_whoever_waits_for_it() -> None:
    class Broken(Counting):
        def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], FillStart]:
            raise DataNotFound("the text is gone")

    spec = StreamSpec.model_validate({"synthetic": {"n_features": 4, "d_in": 1}, "tokens": 8, "batch": 4})
    stream = ActivationStream(spec, Broken(FillStart()), StreamPosition())
    with pytest.raises(DataNotFound, match="gone"):
        list(stream.fills())
    stream.close()


def test_a_stream_shows_life_with_each_piece_of_a_fill() -> None:
    class Pieces(Counting):
        def fill(self, n_rows: int, should_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], FillStart]:
            assert not any(should_stop() for _ in range(n_rows))
            return super().fill(n_rows)

    signs: list[None] = []
    spec = StreamSpec.model_validate({"synthetic": {"n_features": 4, "d_in": 1}, "tokens": 8, "batch": 4})
    stream = ActivationStream(spec, Pieces(FillStart()), StreamPosition(), lambda: signs.append(None))
    assert len(list(stream.fills())) == 1
    stream.close()
    assert len(signs) == 8


@given(n_steps=st.integers(1, 12), rows=st.sampled_from([0, 4, 8, 13, 20]), seed=st.integers(0, 2**32 - 1), data=st.data())
@few
def test_each_row_is_served_once_and_any_position_can_be_gone_back_to(
    n_steps: int, rows: int, seed: int, data: st.DataObject
) -> None:
    synthetic = {"n_features": 4, "d_in": 1}
    spec = StreamSpec.model_validate({"synthetic": synthetic, "tokens": n_steps * 4, "batch": 4, "buffer_rows": rows, "seed": seed})
    whole = served(spec, StreamPosition())
    assert len(whole) == n_steps
    assert sorted(np.concatenate([batch for batch, _ in whole]).tolist()) == list(range(n_steps * 4))
    fills: dict[int, list[int]] = {}
    for before, (batch, _) in zip([StreamPosition(), *(after for _, after in whole)], whole, strict=False):
        fills.setdefault(before.fill_index, []).extend(batch.tolist())
    served_before = 0
    for found in fills.values():
        assert sorted(found) == list(range(served_before, served_before + len(found))), "a fill drains before the next one"
        assert len(found) <= 4 * spec.steps_per_fill
        served_before += len(found)
    sizes = [len(found) for found in fills.values()]
    assert all(size - last <= 4 for size, last in itertools.pairwise(sizes[-2:])), "the last fill is not much smaller"
    back = data.draw(st.integers(0, n_steps - 1))
    position = StreamPosition.model_validate_json(whole[back][1].model_dump_json())
    again = served(spec, position)
    assert [batch.tolist() for batch, _ in again] == [batch.tolist() for batch, _ in whole[back + 1 :]]
    assert [after for _, after in again] == [after for _, after in whole[back + 1 :]]


@given(n_steps=st.integers(2, 12), longer=st.integers(2, 20), rows=st.sampled_from([8, 13, 20]), data=st.data())
@few
def test_a_job_of_another_length_that_goes_on_in_the_middle_of_a_fill_repeats_no_row_and_leaves_none_out(
    n_steps: int, longer: int, rows: int, data: st.DataObject
) -> None:
    def spec(steps: int) -> StreamSpec:
        synthetic = {"n_features": 4, "d_in": 1}
        return StreamSpec.model_validate({"synthetic": synthetic, "tokens": steps * 4, "batch": 4, "buffer_rows": rows})

    forked_after = data.draw(st.integers(1, min(n_steps, longer) - 1))
    before = served(spec(n_steps), StreamPosition())[:forked_after]
    after = served(spec(longer), before[-1][1])
    batches = [batch for batch, _ in before + after]
    assert len(batches) == longer
    found = np.concatenate(batches)
    assert len(set(found.tolist())) == longer * 4
    # And where the shorter one is extended to a whole number of fills, nothing was left out.
    more = served(spec(longer + 20), (before + after)[-1][1])
    whole = np.concatenate([found, *(batch for batch, _ in more)])
    assert len(set(whole.tolist())) == len(whole) == (longer + 20) * 4
    assert set(range(longer * 4)) <= set(whole.tolist())


def test_every_fill_and_every_seed_has_its_own_order() -> None:
    orders = [permutation(seed, fill, 50).tolist() for seed in (0, 1) for fill in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert permutation(0, 1, 50).tolist() == orders[1]


class Echo(LanguageModel):
    """A model whose activation is the token."""

    def __init__(self) -> None:
        self.device = "cpu"

    def activations(self, tokens: Any, hook_names: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(tokens).float()[..., None] for name in hook_names}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> PackedTokens:
    path: Path = tmp_path_factory.mktemp("text") / "text.jsonl"
    documents = ["ab" * (i % 7) + "c" * (i % 3) for i in range(100)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    spec = DatasetSpec(path=str(path), held_out_split="other")
    return PackedTokens(spec, "train", Letters(), CONTEXT, 3, True)


def collected(reader: PackedTokens, start: FillStart, sizes: list[int]) -> tuple[list[float], FillStart]:
    """The rows of fills of these sizes, and where the next one starts."""
    harvest = TextHarvest(Echo(), reader, ("hook",), (BOS,), start)
    rows: list[float] = []
    for size in sizes:
        filled, start = harvest.fill(size)
        assert filled["hook"].shape == (size, 1)
        rows += np.asarray(filled["hook"][:, 0]).tolist()
    return rows, start


@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6), cut=st.integers(1, 5))
@few
def test_fills_of_any_size_lose_no_row_and_go_on_from_where_they_stopped(
    reader: PackedTokens, sizes: list[int], cut: int
) -> None:
    whole, end = collected(reader, FillStart(), sizes)
    tokens = np.concatenate([prompts.tokens.ravel() for (prompts, _), _ in zip(reader.read(Cursor()), range(60), strict=False)])
    assert whole == tokens[tokens != BOS][: sum(sizes)].tolist()
    first, middle = collected(reader, FillStart(), sizes[:cut])
    rest, again = collected(reader, FillStart.model_validate_json(middle.model_dump_json()), sizes[cut:])
    assert first + rest == whole
    assert again == end


def test_rows_beyond_the_limit_are_left_out(reader: PackedTokens) -> None:
    whole, _ = collected(reader, FillStart(), [200])
    harvest = TextHarvest(Echo(), reader, ("hook",), (BOS,), FillStart(), {"hook": 98.0})
    kept = [row for row in whole if row <= ord("b")]
    assert 0 < len(kept) < 200
    first, middle = harvest.fill(10)
    rest, _ = TextHarvest(Echo(), reader, ("hook",), (BOS,), middle, {"hook": 98.0}).fill(len(kept) - 10)
    assert [float(row[0]) for rows in (first, rest) for row in rows["hook"]] == kept


@given(index=st.integers(0, 60))
@few
def test_reading_again_from_any_cursor_yields_the_same_rows(reader: PackedTokens, index: int) -> None:
    whole = [item for item, _ in zip(reader.read(Cursor()), range(64), strict=False)]
    stored = Cursor.model_validate_json(whole[index][1].model_dump_json())
    for (prompts, _), (expected, _) in zip(reader.read(stored), whole[index:], strict=False):
        np.testing.assert_array_equal(prompts.tokens, expected.tokens)
