"""Files of text: which are read, and what is said of one that cannot be read."""

import gzip
import json
import lzma
import random
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest

from sae_service.activations import text
from sae_service.activations.text import open_text
from sae_service.errors import DamagedText, DataNotFound
from sae_service.spec import DatasetSpec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def values(path: Path, split: str = "train", **fields: Any) -> list[Any]:
    """All values of the text column of a split."""
    found = open_text(DatasetSpec(path=str(path), **fields), split)
    return [value for shard in range(found.n_shards) for group in found.groups(shard, 0) for value in group]


def damage(path: Path) -> str:
    """What is said of a file that cannot be read."""
    with pytest.raises(DamagedText) as caught:
        values(path)
    assert caught.value.param == "/stream/dataset/path"
    return caught.value.message


def lines(n: int, length: int = 20) -> list[bytes]:
    draw = random.Random(n)
    return [json.dumps({"text": draw.randbytes(length).hex()}).encode() for _ in range(n)]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b'{"text": "cut off', "Unterminated string"),
        (b'{"text": "\xb5\xff"}', "can't decode byte 0xb5"),
        (b"[1, 2]", "not a JSON object"),
        (b"[" * 5000, "recursion"),
        (b'{"text": "\\ud83d"}', "surrogates not allowed"),
    ],
)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, packed: str, broken: bytes, said: str) -> None:
    path = tmp_path / f"text.jsonl{packed}"
    path.write_bytes(PACKERS[packed](b"\n".join([*lines(4), b"", broken, *lines(3)])))
    message = damage(path)
    assert message.startswith(f"line 6 of {path} cannot be read: ")
    assert said in message


def test_a_broken_line_is_found_when_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    # More than any reader takes at once, and of a type that is not known until then.
    pad = json.dumps({"text": None, "pad": "x" * (1 << 20)}).encode()
    path.write_bytes(b"\n".join([*lines(4), *[pad] * 12, *lines(200), b'{"text": "cut off', *lines(3)]))
    groups = open_text(DatasetSpec(path=str(path)), "train").groups(0, 0)
    assert sum(len(next(groups)) for _ in range(3)) == 3 * 64
    with pytest.raises(DamagedText, match="line 217 of "):
        list(groups)


def test_a_broken_line_of_plain_text_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xb5\xff\n")
    (tmp_path / "b.txt").write_bytes(b"one\n")
    assert damage(tmp_path).startswith(f"line 3 of {tmp_path / 'a.txt'} cannot be read: ")


def test_a_fault_in_a_list_of_json_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n {"text": "a"},\n {"text": b}\n]')
    assert damage(tmp_path / "a.json").startswith(f"line 3 of {tmp_path / 'a.json'} cannot be read: Expecting value at column 11")


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("fault", ["cut off", "a byte changed", "not packed"])
def test_a_damaged_archive_is_named(tmp_path: Path, packed: str, fault: str) -> None:
    path, content = tmp_path / f"text.jsonl{packed}", bytearray(PACKERS[packed](b"\n".join(lines(3000))))
    middle = len(content) // 2
    if fault == "cut off":
        content = content[:middle]
    elif fault == "a byte changed":
        content[middle] ^= 255
    else:
        content = bytearray(b"not packed")
    path.write_bytes(content)
    assert f"of {path} cannot be read: " in damage(path)


@pytest.mark.parametrize("fault", ["cut off", "bytes changed"])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_damaged_table_is_named(tmp_path: Path, ending: str, fault: str) -> None:
    path = tmp_path / f"text.{ending}"
    frame = pandas.DataFrame({"text": [json.loads(line)["text"] for line in lines(5000)]})
    if ending == "parquet":
        frame.to_parquet(path, row_group_size=500)
    else:
        datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if fault == "cut off":
        content = content[:middle]
    else:
        content[middle : middle + 4000] = bytes(255 ^ byte for byte in content[middle : middle + 4000])
    path.write_bytes(content)
    assert str(path) in damage(path)


def test_a_table_whose_line_has_too_many_cells_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\none,1\ntwo,2,3,4\n")
    assert str(tmp_path / "a.csv") in (message := damage(tmp_path / "a.csv"))
    assert "line 3" in message


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_LINE", 1 << 20)
    (tmp_path / "a.txt").write_bytes(b"x" * (1 << 21))
    assert "line 1" in (message := damage(tmp_path / "a.txt"))
    assert "longer than 1 MiB" in message


def test_a_file_that_has_gone_may_come_back(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(b"\n".join(lines(10)))
    found = open_text(DatasetSpec(path=str(path)), "train")
    path.unlink()
    with pytest.raises(DataNotFound) as caught:
        list(found.groups(0, 0))
    assert not isinstance(caught.value, DamagedText)


def test_a_cell_of_a_csv_is_the_text_that_stands_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,text\n1,NA\n2,\n3,007\n4,"two\nlines"\n')
    assert values(tmp_path / "a.csv") == ["NA", "", "007", "two\nlines"]
    assert values(tmp_path) == ["NA", "", "007", "two\nlines"]


def test_every_kind_of_document_comes_through_json_as_it_is(tmp_path: Path) -> None:
    documents = ["é😀", None, [1, 2], 5, [{"role": "user", "content": "hi"}], {"a": 1}]
    path = tmp_path / "text.ndjson"
    path.write_text("".join(json.dumps({"text": document}) + "\n\n" for document in documents) + '{"other": 1}\n')
    assert values(path) == [*documents, None]


def test_what_save_to_disk_writes_is_read_split_by_split(tmp_path: Path) -> None:
    def of(name: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": [f"{name} {index}" for index in range(5)]})

    of("one").save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": of("a"), "other": of("b")}).save_to_disk(tmp_path / "many")
    assert values(tmp_path / "one") == [f"one {index}" for index in range(5)]
    assert values(tmp_path / "many", "other") == [f"b {index}" for index in range(5)]
    with pytest.raises(DataNotFound, match="no split 'test' beside"):
        values(tmp_path / "one", "test")
    with pytest.raises(DataNotFound, match="other"):
        values(tmp_path / "many", "test")


def test_a_file_of_arrow_is_read(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [[1, 2], [3]]})
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as sink:
        sink.write_table(table)
    assert values(tmp_path / "a.arrow") == [[1, 2], [3]]
