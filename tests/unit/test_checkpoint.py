"""A checkpoint is read as it was written, to where it belongs, or refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from sae_service.errors import DamagedCheckpoint, WrongVersion
from sae_service.storage import checkpoint
from sae_service.storage.objects import PART, Storage
from tests.published import published

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STATE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int32)}
ARRAYS = f"c/{checkpoint.ARRAYS}"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path.as_uri())


def arrays(kind: Any) -> st.SearchStrategy[np.ndarray]:
    """Arrays of a kind with up to three dimensions, empty ones and transposed ones too."""
    shapes = st.lists(st.integers(0, 4), max_size=3)
    straight = shapes.map(lambda shape: np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape))
    return st.builds(lambda array, turned: array.T if turned else array, straight, st.booleans())


KINDS = [np.float32, np.int32, np.uint32, np.uint8, np.bool_, np.float16]
NAMES = st.text(alphabet="abc'[]\"é\\", min_size=1, max_size=4)
STATES = st.dictionaries(NAMES, st.sampled_from(KINDS).flatmap(arrays), max_size=4)
KEYS = (f"jobs/j/{number}" for number in count())


@given(state=STATES, step=st.integers(0, 2**53))
@few
def test_a_checkpoint_is_read_as_it_was_written_or_refused(storage: Storage, state: dict[str, Any], step: int) -> None:
    key = next(KEYS)
    storage.publish(key, checkpoint.to_files(state, {"step": step}))
    read, values = checkpoint.read(storage, key, like=state)
    assert values == {"step": step}
    assert jax.tree.structure(read) == jax.tree.structure(state)
    assert all(np.array_equal(read[name], state[name]) and read[name].dtype == state[name].dtype for name in state)
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(storage, key, like=state | {"another": np.zeros(1, np.float32)})
    for name in state:
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(storage, key, like=state | {name: state[name][None]})
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(storage, key, like=state | {name: state[name].astype(np.int16)})
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(storage, key, like={other: state[other] for other in state if other != name})


@given(state=STATES)
@few
def test_the_arrays_are_a_safetensors_file(storage: Storage, state: dict[str, Any]) -> None:
    key = next(KEYS)
    storage.publish(key, checkpoint.to_files(state, {}))
    content = storage.get(f"{key}/{checkpoint.ARRAYS}")
    assert int.from_bytes(content[:8], "little") % 8 == 0
    read = load(content)
    named = {f"[{name!r}]": array for name, array in state.items()}
    assert read.keys() == named.keys()
    assert all(np.array_equal(read[name], named[name]) and read[name].dtype == named[name].dtype for name in named)


@given(state=STATES)
@few
def test_equal_states_are_equal_bytes(storage: Storage, state: dict[str, Any]) -> None:
    other = {name: np.array(state[name], order="F") for name in reversed(state)}
    entries = [storage.publish(next(KEYS), checkpoint.to_files(each, {})) for each in (state, other)]
    assert entries[0] == entries[1]


def test_a_state_of_another_kind_of_float_goes_both_ways(storage: Storage) -> None:
    state = {"a": jnp.arange(5, dtype=jnp.bfloat16)}
    storage.publish("c", checkpoint.to_files(state, {}))
    read, _ = checkpoint.read(storage, "c", like=state)
    assert read["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(read["a"], state["a"])


def test_a_state_longer_than_a_part_is_read_as_it_was_written(storage: Storage) -> None:
    state = {name: np.random.default_rng(ord(name)).integers(0, 1 << 31, PART // 7, np.int32) for name in "abcd"}
    entries = storage.publish("c", checkpoint.to_files(state, {}))
    assert {entry["path"]: entry["size"] for entry in entries}[checkpoint.ARRAYS] == storage.size(ARRAYS) > 2 * PART
    assert published(storage, "c").keys() == {checkpoint.ARRAYS, checkpoint.VALUES}, "the manifest has the right hashes"
    read, _ = checkpoint.read(storage, "c", like=state)
    assert all(np.array_equal(read[name], state[name]) for name in state)


def test_what_the_safetensors_library_wrote_is_read(storage: Storage) -> None:
    files = checkpoint.to_files(STATE, {})
    content = save({f"[{name!r}]": array for name, array in STATE.items()}, metadata={"by": "it"})
    storage.publish("c", files | {checkpoint.ARRAYS: content})
    read, _ = checkpoint.read(storage, "c", like=STATE)
    assert all(np.array_equal(read[name], STATE[name]) for name in STATE)


def test_what_was_read_is_not_what_was_read_before_and_can_be_consumed(storage: Storage) -> None:
    # Many lengths, because it is by the address that JAX decides whether to copy an array or to take it over.
    state = {str(length): np.ones(length, np.float32) for length in range(1, 4000, 97)}
    storage.publish("c", checkpoint.to_files(state, {}))
    first, _ = checkpoint.read(storage, "c", like=state)
    second, _ = checkpoint.read(storage, "c", like=state)
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((first, second))}
    assert len(places) == 2 * len(state)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    for _ in range(3):
        first = step(first)
    for name in state:
        np.testing.assert_array_equal(first[name], np.full(len(state[name]), 4))
        np.testing.assert_array_equal(second[name], state[name])


PLACES = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from sae_service.storage import checkpoint
from sae_service.storage.objects import Storage
jax.config.update("jax_num_cpu_devices", 2)
storage, state = Storage(sys.argv[1]), {"a": np.arange(8.0, dtype=np.float32), "b": np.ones(3, np.float32), "c": np.ones((), int)}
state["c"] = state["c"].astype(np.int32)
storage.publish("c", checkpoint.to_files(state, {}))
halves = NamedSharding(jax.make_mesh((2,), ("part",)), PartitionSpec("part"))
places = {"a": halves, "b": SingleDeviceSharding(jax.devices()[1]), "c": None}
like = {name: jax.ShapeDtypeStruct(state[name].shape, state[name].dtype, sharding=places[name]) for name in state}
read, _ = checkpoint.read(storage, "c", like)
assert read["a"].sharding == halves and [len(shard.data) for shard in read["a"].addressable_shards] == [4, 4]
assert read["b"].devices() == {jax.devices()[1]} and read["c"].devices() == {jax.devices()[0]} and not read["c"].committed
assert all(np.array_equal(read[name], state[name]) for name in state)
"""


def test_each_leaf_goes_where_it_is_to_be(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PLACES, tmp_path.as_uri()], check=True)


def test_a_checkpoint_of_another_release_is_no_damaged_one(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        storage.publish("c", checkpoint.to_files(STATE, {}))
    with pytest.raises(WrongVersion, match="release"):
        checkpoint.read(storage, "c", like=STATE)


def test_a_checkpoint_from_before_resuming_was_exact_says_what_may_be_wrong_with_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "FORMAT", checkpoint.FIRST_EXACT_FORMAT - 1)
        storage.publish("c", checkpoint.to_files(STATE, {}))
    with pytest.raises(WrongVersion, match="more than once, some text may have been read twice"):
        checkpoint.read(storage, "c", like=STATE)


@pytest.mark.parametrize("values", [b"", b"[]", b"{}", b'{"format": null}', b'{"format": "3"}', b"\xff"])
def test_values_that_no_release_wrote_are_damaged(storage: Storage, values: bytes) -> None:
    storage.publish("c", checkpoint.to_files(STATE, {}) | {checkpoint.VALUES: values})
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(storage, "c", like=STATE)


def written() -> bytes:
    """The arrays of STATE as they are written."""
    content = checkpoint.to_files(STATE, {})[checkpoint.ARRAYS]
    assert not isinstance(content, bytes)
    return b"".join(content.pieces())


def test_a_torn_file_is_damaged_wherever_it_ends(storage: Storage, tmp_path: Path) -> None:
    storage.publish("c", checkpoint.to_files(STATE, {}))
    path, content = tmp_path / ARRAYS, written()
    for torn in [*(content[:length] for length in range(len(content))), content + b"\0"]:
        path.write_bytes(torn)
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(storage, "c", like=STATE)
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match="missing"):
        checkpoint.read(storage, "c", like=STATE)


@pytest.mark.parametrize("missing", [checkpoint.ARRAYS, checkpoint.VALUES])
def test_a_published_set_without_a_state_is_damaged(storage: Storage, missing: str) -> None:
    files = checkpoint.to_files(STATE, {})
    storage.publish("c", {path: files[path] for path in files if path != missing})
    with pytest.raises(DamagedCheckpoint, match="no state"):
        checkpoint.read(storage, "c", like=STATE)


def test_a_changed_byte_of_an_array_is_found_by_the_hash(storage: Storage, tmp_path: Path) -> None:
    storage.publish("c", checkpoint.to_files(STATE, {}))
    (tmp_path / ARRAYS).write_bytes(written()[:-1] + b"\x7f")
    with pytest.raises(DamagedCheckpoint, match="does not match its manifest"):
        checkpoint.read(storage, "c", like=STATE)


A, B = "['a']", "['b']"
LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an array over the other": lambda header: header[B].update(data_offsets=[8, 24]),
    "a gap": lambda header: header[B].update(data_offsets=[28, 44]),
    "a beginning before the first": lambda header: header[A].update(data_offsets=[-4, 20]),
    "an end before the beginning": lambda header: header[A].update(data_offsets=[24, 0]),
    "more than there is": lambda header: header[B].update(data_offsets=[24, 1 << 60]),
    "one offset": lambda header: header[B].update(data_offsets=[24]),
    "no offsets": lambda header: header[B].pop("data_offsets"),
    "offsets in words": lambda header: header[B].update(data_offsets="24"),
    "an unknown dtype": lambda header: header[A].update(dtype="F33"),
    "another dtype of the same size": lambda header: header[A].update(dtype="I32"),
    "no dtype": lambda header: header[A].pop("dtype"),
    "the shape the other way": lambda header: header[A].update(shape=[3, 2]),
    "a negative shape": lambda header: header[A].update(shape=[-2, -3]),
    "an array too few": lambda header: header.pop(B),
    "an array too many": lambda header: header.update(c={"dtype": "F32", "shape": [0], "data_offsets": [40, 40]}),
    "an array that is a number": lambda header: header.update({A: 3}),
}


def with_header(text: bytes, length: int | None = None) -> bytes:
    """The arrays of STATE behind another header."""
    content = written()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header() -> dict[str, Any]:
    """What STATE's header says."""
    content = written()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_damaged_even_if_the_manifest_agrees_with_it(storage: Storage, lie: str) -> None:
    told = header()
    LIES[lie](told)
    storage.publish("c", checkpoint.to_files(STATE, {}) | {checkpoint.ARRAYS: with_header(json.dumps(told).encode())})
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(storage, "c", like=STATE)


@pytest.mark.parametrize("content", [
    with_header(b"{}"), with_header(b"[]"), with_header(b"null"), with_header(b"\xff\xfe"), with_header(b""),
    with_header(b"[" * 100_000), with_header(b"{}", 1 << 62), with_header(b"{}", 99_999_999), b"",
])  # fmt: skip
def test_a_header_that_is_none_is_damaged(storage: Storage, content: bytes) -> None:
    storage.publish("c", checkpoint.to_files(STATE, {}) | {checkpoint.ARRAYS: content})
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(storage, "c", like=STATE)
