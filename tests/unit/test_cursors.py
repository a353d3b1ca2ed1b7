"""A stream that was resumed gives the cursors of one that was not, as values, in every layout of text."""

import gzip
import json
import lzma
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_service.activations.tokens import Cursor, PackedTokens
from sae_service.spec import DatasetSpec
from tests.letters import BOS, Letters, chat_tokenizer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

N_BATCHES = 200
Batch = tuple[list[list[int]], list[list[bool]], Cursor]


def documents(n: int, longest: int) -> list[str]:
    draw = random.Random(n * longest)
    return ["".join(draw.choices("abcdefgh", k=draw.randint(1, longest))) for _ in range(n)]


def as_lines(texts: Sequence[Any]) -> bytes:
    return "".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts).encode()


def as_ids(texts: list[str]) -> list[list[int]]:
    """Every third one begins with BOS already."""
    return [[BOS] * (index % 3 == 0) + [ord(letter) for letter in text] for index, text in enumerate(texts)]


def as_talk(texts: list[str]) -> list[list[dict[str, str]]]:
    """Turns of a user and an assistant, one to six of them."""
    return [
        [{"role": ("user", "assistant")[turn % 2], "content": text[turn:]} for turn in range(1 + index % 6)]
        for index, text in enumerate(texts)
    ]


def save(folder: Path, texts: list[str], n_files: int) -> None:
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder, num_shards=n_files)


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
        case "zstd":
            parts_of_it = [zstd.compress(as_lines(part)) for part in (many_short[:150], many_short[150:])]
            (folder / "text.jsonl.zst").write_bytes(b"".join(parts_of_it))
        case "csv":
            pandas.DataFrame({"other": 1, "text": many_short}).to_csv(folder / "text.csv")
        case "one list":
            (folder / "text.json").write_text(json.dumps([{"text": text} for text in few_long], indent=1))
        case "saved":
            save(folder / "saved", many_short, 3)
        case "saved splits":
            save(folder / "saved" / "train", few_long, 2)
            save(folder / "saved" / "test", many_short, 1)
            (folder / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        case "ids":
            (folder / "text.jsonl").write_bytes(as_lines(as_ids(few_long)))
        case "kept ids":
            pandas.DataFrame({"text": [ids[:20] for ids in as_ids(few_long) if len(ids) >= 16]}).to_parquet(folder / "ids.parquet")
        case "chat" | "answers":
            (folder / "text.jsonl").write_bytes(as_lines(as_talk(many_short)))
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
    held_out: dict[str, Any] = {"held_out_share": 0.3} if layout in ("hash split", "answers") else {"held_out_split": "test"}
    return {"path": str(path), **held_out, **FIELDS.get(layout, {})}


FIELDS = {"kept ids": {"rows": "kept"}, "chat": {"chat": True}, "answers": {"chat": True, "train_on": "assistant"}}
LAYOUTS = (
    "one jsonl", "long documents", "gzip", "xz", "lines", "row groups", "many parquet", "many jsonl", "hash split", "named split",
    "zstd", "csv", "one list", "saved", "saved splits", "ids", "kept ids", "chat", "answers",
)  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PackedTokens]:
    """The packed text of a layout, which ends and begins again."""

    @cache
    def read(layout: str) -> PackedTokens:
        spec = DatasetSpec.model_validate(lay_out(layout, tmp_path_factory.mktemp("text")))
        return PackedTokens(spec, "train", Letters(chat_tokenizer()), 16, 2, True)

    return read


@pytest.fixture(scope="module")
def undisturbed(reader: Callable[[str], PackedTokens]) -> Callable[[str], list[Batch]]:
    """The first batches of a layout with their cursors."""

    @cache
    def read(layout: str) -> list[Batch]:
        return read_from(reader(layout), Cursor(), N_BATCHES)

    return read


def read_from(reader: PackedTokens, cursor: Cursor, n_batches: int) -> list[Batch]:
    found = zip(reader.read(cursor), range(n_batches), strict=False)
    return [(prompts.tokens.tolist(), prompts.trained.tolist(), after) for (prompts, after), _ in found]


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
        resumed = read_from(reader(layout), cursor, until + 1 - at)
        assert resumed == whole[at : until + 1]
        at, cursor = until, Cursor.model_validate_json(resumed[-1][-1].model_dump_json())


def test_the_layouts_have_several_shards_groups_and_epochs(undisturbed: Callable[[str], list[Batch]]) -> None:
    cursors = {layout: [cursor for *_, cursor in undisturbed(layout)] for layout in LAYOUTS}
    assert {cursor.shard for cursor in cursors["many parquet"]} >= {0, 1, 2}
    assert len({cursor.documents for cursor in cursors["row groups"]}) > 3
    assert max(cursor.rows_served for cursor in cursors["long documents"]) > 100
    assert max(cursor.epoch for layout in LAYOUTS for cursor in cursors[layout]) >= 1
    trained = {layout: {position for _, rows, _ in undisturbed(layout) for row in rows for position in row} for layout in LAYOUTS}
    assert [layout for layout in LAYOUTS if trained[layout] != {True}] == ["answers"]
    assert {cursor.shard for layout in ("saved", "saved splits") for cursor in cursors[layout]} == {0, 1, 2}
