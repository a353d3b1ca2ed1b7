"""A stream that was resumed gives the cursors of one that was not, as values, in every layout of text."""

import gzip
import json
import lzma
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.spec import DatasetSpec

N_BATCHES = 200
Batch = tuple[list[list[int]], Cursor]


def documents(n: int, longest: int) -> list[str]:
    draw = random.Random(n * longest)
    return ["".join(draw.choices("abcdefgh", k=draw.randint(1, longest))) for _ in range(n)]


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts).encode()


def as_parquet(path: Path, texts: list[str], row_group: int) -> None:
    pandas.DataFrame({"text": texts, "other": 1}).to_parquet(path, row_group_size=row_group)


def lay_out(layout: str, folder: Path) -> dict[str, Any]:
    """Writes text in one layout, and returns the fields of its dataset."""
    many_short, few_long, parts = documents(400, 40), documents(70, 700), [documents(n, 30) for n in (20, 70, 64, 3)]
    match layout:
        case "one jsonl":
            (folder / "text.jsonl").write_bytes(as_lines(many_short))
        case "long documents":
            (folder / "text.jsonl").write_bytes(as_lines(few_long))
        case "gzip":
            (folder / "text.jsonl.gz").write_bytes(gzip.compress(as_lines(many_short)))
        case "xz":
            (folder / "text.jsonl.xz").write_bytes(lzma.compress(as_lines(few_long)))
        case "lines":
            (folder / "text.txt").write_text("\n".join(many_short))
        case "row groups":
            as_parquet(folder / "text.parquet", many_short, 100)
        case "many parquet":
            for index, part in enumerate(parts):
                as_parquet(folder / f"train-{index}.parquet", part, 50)
        case "many jsonl" | "hash split":
            for index, part in enumerate(parts):
                (folder / f"train-{index}.jsonl").write_bytes(as_lines(part))
        case "named split":
            as_parquet(folder / "train-0.parquet", many_short, 100)
            as_parquet(folder / "test-0.parquet", few_long, 100)
    files = sorted(folder.iterdir())
    path = files[0] if len(files) == 1 else folder
    held_out: dict[str, Any] = {"held_out_share": 0.3} if layout == "hash split" else {"held_out_split": "test"}
    return {"path": str(path), **held_out}


LAYOUTS = (
    "one jsonl", "long documents", "gzip", "xz", "lines", "row groups", "many parquet", "many jsonl", "hash split", "named split",
)  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PackedTokens]:
    """The packed text of a layout, which ends and begins again."""

    @cache
    def read(layout: str) -> PackedTokens:
        spec = DatasetSpec.model_validate(lay_out(layout, tmp_path_factory.mktemp("text")))
        return PackedTokens(spec, "train", lambda texts: [[ord(letter) for letter in text] for text in texts], 0, 16, 2, True)

    return read


@pytest.fixture(scope="module")
def undisturbed(reader: Callable[[str], PackedTokens]) -> Callable[[str], list[Batch]]:
    """The first batches of a layout with their cursors."""

    @cache
    def read(layout: str) -> list[Batch]:
        found = zip(reader(layout).read(Cursor()), range(N_BATCHES), strict=False)
        return [(batch.tolist(), cursor) for (batch, cursor), _ in found]

    return read


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cursors_of_every_generation_are_those_of_an_undisturbed_stream(
    reader: Callable[[str], PackedTokens], undisturbed: Callable[[str], list[Batch]], layout: str, data: st.DataObject
) -> None:
    whole = undisturbed(layout)
    assert len(whole) == N_BATCHES
    at, cursor = 0, Cursor()
    for n_batches in data.draw(st.lists(st.integers(0, 60), min_size=2, max_size=6)):
        until = min(at + n_batches, N_BATCHES - 1)
        found = zip(reader(layout).read(cursor), range(at, until + 1), strict=False)
        resumed = [(batch.tolist(), after) for (batch, after), _ in found]
        assert resumed == whole[at : until + 1]
        at, cursor = until, Cursor.model_validate_json(resumed[-1][1].model_dump_json())


def test_the_layouts_have_several_shards_groups_and_epochs(undisturbed: Callable[[str], list[Batch]]) -> None:
    cursors = {layout: [cursor for _, cursor in undisturbed(layout)] for layout in LAYOUTS}
    assert {cursor.shard for cursor in cursors["many parquet"]} >= {0, 1, 2}
    assert len({cursor.documents for cursor in cursors["row groups"]}) > 3
    assert max(cursor.rows_served for cursor in cursors["long documents"]) > 100
    assert max(cursor.epoch for layout in LAYOUTS for cursor in cursors[layout]) >= 1
