"""All files that a stream's rows are made of count for its name, wherever they are, and one that changes is noticed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_service.activations import noted_files
from sae_service.activations.noted_files import NotedFiles
from sae_service.errors import Stopped
from sae_service.readable import EVERYWHERE, Roots
from sae_service.spec import DatasetSpec, ModelSpec


def hashed(files: NotedFiles | None) -> str:
    assert files is not None
    return files.sha256(lambda: False)


def in_folder(path: Path, roots: Roots = EVERYWHERE) -> NotedFiles:
    return NotedFiles(str(path), (), roots)


def test_the_content_of_files_counts_to_their_end_and_their_place_does_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_bytes(bytes(20 << 20))
    assert hashed(in_folder(tmp_path / "a")) == hashed(in_folder(tmp_path / "b"))
    with (tmp_path / "b" / "deep" / "weights").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert hashed(in_folder(tmp_path / "a")) != hashed(in_folder(tmp_path / "b"))
    (tmp_path / "a" / "deep" / "weights").rename(tmp_path / "a" / "deep" / "others")
    before = hashed(in_folder(tmp_path / "a"))
    (tmp_path / "a" / "deep" / "others").rename(tmp_path / "a" / "weights")
    assert hashed(in_folder(tmp_path / "a")) != before


def test_a_file_that_may_not_be_read_is_not_read_and_a_stop_is_seen(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "inside" / "text.txt").write_text("text")
    before = hashed(in_folder(tmp_path / "inside"))
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    assert hashed(in_folder(tmp_path / "inside", Roots((tmp_path / "inside",)))) == before
    with pytest.raises(Stopped):
        in_folder(tmp_path / "inside").sha256(lambda: True)


def saved_splits(folder: Path, outside: Path) -> Path:
    """A folder by `DatasetDict.save_to_disk` of which one split lies elsewhere. Returns a file of it."""
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(outside / "saved")
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "train").symlink_to(outside / "saved")
    return next((outside / "saved").glob("*.arrow"))


def named_in_the_card(folder: Path, outside: Path) -> Path:
    """A folder whose card names files behind a link to a folder. Returns one of them."""
    (folder / "more").symlink_to(outside)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: more/*.jsonl\n---\n"
    )
    (outside / "a.jsonl").write_text('{"text": "a"}\n')
    return outside / "a.jsonl"


def linked_file(folder: Path, outside: Path) -> Path:
    """A folder with a link to a file. Returns that."""
    (outside / "a.jsonl").write_text('{"text": "a"}\n')
    (folder / "train.jsonl").symlink_to(outside / "a.jsonl")
    return outside / "a.jsonl"


@pytest.mark.parametrize("made", [saved_splits, named_in_the_card, linked_file])
def test_text_elsewhere_counts_and_is_watched(made: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    folder, outside = tmp_path / "text", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    file = made(folder, outside)
    spec = DatasetSpec(path=str(folder))
    files = noted_files.of_text(spec, EVERYWHERE)
    assert files is not None
    before = hashed(files)
    assert files.changed() is None
    content = bytearray(file.read_bytes())
    content[content.index(b"a")] ^= 3
    file.write_bytes(content)
    assert files.changed() is not None
    assert hashed(noted_files.of_text(spec, EVERYWHERE)) != before


def test_weights_outside_of_the_folder_count_and_are_watched(tmp_path: Path) -> None:
    model, weights = tmp_path / "model", tmp_path / "w" / "x.safetensors"
    for folder in (model, weights.parent):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../w/x.safetensors"}}))
    weights.write_bytes((2).to_bytes(8, "little") + b"{}")
    spec = ModelSpec(name=str(model))
    files = noted_files.of_model(spec, EVERYWHERE)
    assert files is not None
    before = hashed(files)
    assert files.changed() is None
    weights.write_bytes((2).to_bytes(8, "little") + b"[]")
    assert files.changed() == model.resolve() / "../w/x.safetensors"
    assert hashed(noted_files.of_model(spec, EVERYWHERE)) != before


def test_a_file_alone_counts_with_the_ending_by_which_it_is_read(tmp_path: Path) -> None:
    for name, link in (("a.txt", "one.txt"), ("b.jsonl", "two.txt")):
        (tmp_path / name).write_text('{"text": "a"}\n')
        (tmp_path / link).symlink_to(tmp_path / name)
    found = [noted_files.of_text(DatasetSpec(path=str(tmp_path / name)), EVERYWHERE) for name in ("one.txt", "a.txt", "two.txt")]
    assert hashed(found[0]) == hashed(found[1]) != hashed(found[2])


def write_anew(path: Path) -> None:
    path.with_suffix(".new").write_text("text")
    status = path.stat()
    os.utime(path.with_suffix(".new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_suffix(".new").replace(path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "in place": lambda path: path.write_text("texts"),
    "replaced by one of its size and time": write_anew,
    "gone": Path.unlink,
    "one more": lambda path: path.with_name("more.txt").write_text("text"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_is_noticed(change: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    file = tmp_path / "text" / "a.txt"
    file.write_text("text")
    files = in_folder(tmp_path / "text")
    assert files.changed() is None
    CHANGES[change](file)
    assert files.changed() == (file.with_name("more.txt") if change == "one more" else file)


def test_a_link_that_leads_to_another_folder_is_a_change(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "now").symlink_to(tmp_path / "a")
    files = in_folder(tmp_path / "now")
    assert files.changed() is None
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to(tmp_path / "b")
    assert files.changed() == tmp_path / "now"


def test_the_files_of_a_hub_are_not_on_this_machine() -> None:
    assert noted_files.of_model(ModelSpec(name="gpt2"), EVERYWHERE) is None
    assert noted_files.of_text(DatasetSpec(path="a/b"), EVERYWHERE) is None
