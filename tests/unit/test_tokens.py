"""Packing and the cursor."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_service.activations.documents import is_held_out
from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.spec import DatasetSpec
from tests.letters import BOS, Letters


def packed(path: str = ".", context_size: int = 5, prompts: int = 2, repeat: bool = False) -> PackedTokens:
    spec = DatasetSpec(path=path, held_out_split="other")
    return PackedTokens(spec, "train", Letters(), context_size, prompts, repeat)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.jsonl"
    documents = ["ab" * (i % 7) + "c" * (i % 3) for i in range(300)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return str(path)


@given(
    documents=st.lists(st.text(alphabet="abc", min_size=1, max_size=20), max_size=12),
    cut=st.integers(0, 12),
    context_size=st.integers(2, 7),
)
def test_packing_loses_no_token_and_starts_each_row_with_bos(
    documents: list[str], cut: int, context_size: int
) -> None:
    reader = packed(context_size=context_size)
    encoded = Letters().encode(documents)
    first, unfinished = reader.pack([], encoded[:cut])
    second, rest = reader.pack(unfinished, encoded[cut:])
    rows = first + second
    assert all(row[0] == BOS and len(row) == context_size for row in rows)
    tokens = [token for row in [*rows, rest] for token in row if token != BOS]
    assert tokens == [token for ids in encoded for token in ids]
    assert (first + second, rest) == reader.pack([], encoded)


def test_reading_from_any_cursor_equals_reading_to_it(text: str) -> None:
    reader = packed(text)
    whole = list(reader.read(Cursor()))
    assert len(whole) > 100
    for index in (0, 1, 37, len(whole) - 1):
        stored = Cursor.model_validate_json(whole[index][1].model_dump_json())
        again = list(reader.read(stored))
        assert len(again) == len(whole) - index
        assert all(np.array_equal(a[0].tokens, b[0].tokens) for a, b in zip(again, whole[index:], strict=True))


def test_text_that_ends_starts_again_and_counts_epochs(text: str) -> None:
    n_batches = len(list(packed(text).read(Cursor())))
    reader = packed(text, repeat=True).read(Cursor())
    cursors = [next(reader)[1] for _ in range(2 * n_batches)]
    assert cursors[0].epoch == 0
    assert cursors[-1].epoch == 1


def test_the_held_out_share_is_about_as_large_as_asked_and_disjoint(text: str) -> None:
    documents = [f"document {i}" for i in range(5000)]
    chosen = [is_held_out(document, 0.1) for document in documents]
    assert 400 < sum(chosen) < 600
    assert chosen == [is_held_out(document, 0.1) for document in documents]


@pytest.mark.parametrize("name", ["text.txt", "text.parquet"])
def test_other_formats_are_read_too(tmp_path: Path, name: str) -> None:
    import pandas

    path = tmp_path / name
    if name.endswith("txt"):
        path.write_text("abcdefgh\nabcdefgh\n")
    else:
        pandas.DataFrame({"text": ["abcdefgh"] * 2}).to_parquet(path)
    rows = np.concatenate([prompts.tokens for prompts, _ in packed(str(path)).read(Cursor())])
    assert rows.shape == (4, 5)
