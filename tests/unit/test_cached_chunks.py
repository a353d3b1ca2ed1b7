"""Cached rows as bytes: what comes back, how exactly, and under which names."""

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sae_service.activations.cached_hook import ChunkName
from sae_service.activations.chunks import ALIGNMENT, MAGIC, Batch, Chunk, RowFormat, packed
from sae_service.activations.tokens import Cursor

FOLDER = "stream/blocks.1.hook_resid_post/float32"
PLACES = [(0, 0, 0, 3), (0, 0, 64, 0), (0, 2, 0, 0), (1, 0, 0, 0), (10, 0, 0, 9)]


def cursor(*place: int) -> Cursor:
    return Cursor(epoch=place[0], shard=place[1], documents=place[2], rows_served=place[3], unfinished=(7, ~8, place[2]))


def rows(n_rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n_rows, 5))).to(dtype)


@pytest.mark.parametrize("own", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored_as", ["own", "float32"])
def test_rows_come_back_to_the_last_bit_with_their_places(own: Any, stored_as: Any) -> None:
    form = RowFormat(own if stored_as == "own" else stored_as, own)
    found = [rows(length, getattr(torch, own), length) for length in (4, 1, 6)]
    batches = [Batch(cursor(*place), form.store(one)) for place, one in zip(PLACES, found, strict=False)]
    chunk = Chunk(bytearray(packed(FOLDER, cursor(*PLACES[0]), batches)), form)
    assert chunk.folder == FOLDER
    assert chunk.previous == cursor(*PLACES[0])
    assert chunk.cursors == [batch.cursor for batch in batches]
    for first in range(3):
        read = list(chunk.batches(first))
        assert [batch.cursor for batch in read] == chunk.cursors[first:]
        for batch, one in zip(read, found[first:], strict=True):
            assert torch.equal(form.restore(batch.stored, "cpu"), one)


def test_a_row_of_int8_is_off_by_half_a_unit_of_its_own_at_most() -> None:
    form = RowFormat("int8", "float32")
    found = torch.cat((1e-3 * rows(3), 1e3 * rows(3), torch.zeros(1, 5)))
    content = packed(FOLDER, None, [Batch(Cursor(), form.store(found))])
    read = form.restore(next(Chunk(bytearray(content), form).batches(0)).stored, "cpu")
    units = found.abs().amax(dim=1, keepdim=True) / 127
    assert ((read - found).abs() <= units * 0.5001).all()
    assert torch.equal(read.abs().amax(dim=1), found.abs().amax(dim=1))


def test_rounding_to_int8_a_second_time_changes_nothing() -> None:
    form = RowFormat("int8", "float32")
    once = form.restore(form.store(rows(50)), "cpu")
    assert torch.equal(form.restore(form.store(once), "cpu"), once)


@pytest.mark.parametrize("own", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored_as", ["own", "float32", "bfloat16", "int8"])
def test_the_largest_and_the_smallest_numbers_of_every_model_stay_finite_and_what_they_are(own: Any, stored_as: Any) -> None:
    form, limits = RowFormat(own if stored_as == "own" else stored_as, own), torch.finfo(getattr(torch, own))
    found = torch.tensor([[limits.max, -limits.max, limits.max / 2], [limits.tiny, -limits.tiny, 0]]).to(getattr(torch, own))
    read = form.restore(form.store(found), "cpu")
    assert read.dtype == found.dtype
    assert read.isfinite().all()
    largest = found.double().abs().amax(dim=1, keepdim=True)
    assert ((read.double() - found.double()).abs() <= largest * {"int8": 2**-7, "bfloat16": 2**-8}.get(form.stored_as, 0)).all()
    assert torch.equal(form.restore(form.store(read), "cpu"), read)


@pytest.mark.parametrize("own", ["float32", "float16"])
def test_what_is_not_finite_does_not_become_the_largest_number(own: Any) -> None:
    found = torch.tensor([[float("inf"), -float("inf"), 1.0, float("nan")]]).to(getattr(torch, own))
    form = RowFormat("bfloat16", own)
    assert torch.equal(form.restore(form.store(found), "cpu").nan_to_num(7), found.nan_to_num(7))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_does_not_become_finite(wrong: float) -> None:
    found = rows(3)
    found[1, 2] = wrong
    form = RowFormat("int8", "float32")
    read = form.restore(form.store(found), "cpu")
    assert not read[1].isfinite().any()
    assert read[[0, 2]].isfinite().all()


def test_the_form_of_a_chunk_is_what_it_says() -> None:
    content = packed(FOLDER, None, [Batch(Cursor(), RowFormat("float32", "float32").store(torch.tensor([[1.0, 2.0], [3.0, 4.0]])))])
    length = int.from_bytes(content[8:16], "little")
    assert content[:8] == MAGIC
    assert (16 + length) % ALIGNMENT == 0
    assert np.frombuffer(content[16 + length :], "<f4").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"text", b"SAEROWS1" + bytes(100), MAGIC + bytes(100)])
def test_what_is_no_chunk_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"no rows|Expecting value"):
        Chunk(bytearray(content), RowFormat("float32", "float32"))


def test_names_say_the_places_in_the_order_of_the_text() -> None:
    sha256 = hashlib.sha256(b"").hexdigest()
    names = [ChunkName.read(f"{ChunkName.start(cursor(*first), cursor(*last))}-{sha256}") for first, last in pairwise(PLACES)]
    assert [name and (name.first, name.last) for name in names] == list(pairwise(PLACES))
    assert names == sorted(name for name in names if name)
    assert all(name is not None and ChunkName.read(str(name)) == name for name in names)


@pytest.mark.parametrize("name", ["", "stream.json", "0.0.0.0-0.0.0.1", "0.0.0-0.0.0.1-ab", "0.0.0.x-0.0.0.1-ab", "a-b-c-d"])
def test_other_names_are_no_chunks(name: str) -> None:
    assert ChunkName.read(name) is None
