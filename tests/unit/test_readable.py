"""What may be read: below the roots, regular files only, and not without end."""

import os
import socket
from pathlib import Path

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sae_service.activations.dataset_files import packaged_loaders
from sae_service.errors import InvalidSpec
from sae_service.readable import EVERYWHERE, LARGEST_LOOK, Look, Roots, content
from sae_service.spec import DatasetSpec, ModelSpec, is_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["../outside", "link", "link/secret", "loop", "a\0b"])
def test_what_leads_out_of_the_roots_is_refused_whether_it_is_there_or_not(root: Path, name: str) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(InvalidSpec) as caught:
        Roots((root,)).inside(f"{root}/{name}", "/field")
    assert caught.value.param == "/field"
    assert "ALLOWED_ROOTS" in caught.value.hint


def test_a_name_that_no_file_can_have_is_refused(root: Path) -> None:
    with pytest.raises(InvalidSpec, match="cannot be looked at"):
        Roots((root,)).inside(f"{root}/{'x' * 5000}", "/field")


def test_a_file_below_a_root_is_found_by_any_way(root: Path) -> None:
    (root / "file").touch()
    (root / "link").symlink_to("./../root/file")
    assert Roots((root,)).inside(f"{root}/link", "/field") == root / "file"
    assert EVERYWHERE.inside(str(root.parent / "outside" / "secret"), "/field") == root.parent / "outside" / "secret"


def test_a_link_at_any_depth_is_found_and_a_circle_of_links_ends(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "up").symlink_to(root)
    Roots((root,)).refuse_links_out_of(root, "the folder", "/field")
    (root / "a" / "b" / "out").symlink_to(root.parent / "outside")
    with pytest.raises(InvalidSpec) as caught:
        Roots((root,)).refuse_links_out_of(root, "the folder", "/field")
    assert "secret" not in str(caught.value)


def test_only_regular_files_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe")
    (root / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root)
        server.bind("socket")
    for name in ("pipe", "device", "socket", ".", "nothing"):
        with pytest.raises(OSError):  # noqa: PT011  any of them
            Look(root / name)


@pytest.mark.parametrize("ask", [-1, None, 1 << 40])
def test_a_look_ends_at_its_limit(root: Path, ask: int | None) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(1 << 40)
    with Look(root / "large") as look, pytest.raises(OSError, match="would have to be read"):
        look.read(ask)
    with (root / "large").open("wb") as file:
        file.truncate(LARGEST_LOOK)
    assert len(content(root / "large")) == LARGEST_LOOK


@pytest.mark.parametrize(
    "name",
    ["data/../../outside", "a/../b", "file:///etc", "http://a/b", "s3://a/b", "hf://datasets/a/b", "a/b/c", "a//b", "/a\0"[1:],
     "a--b", "a.git", "x" * 97, "é", "-a", "a/", "", " "],
)  # fmt: skip
def test_a_name_is_a_path_or_one_that_a_hub_takes(name: str) -> None:
    for of in (lambda: ModelSpec(name=name), lambda: DatasetSpec(path=name)):
        with pytest.raises(ValidationError):
            of()


@settings(deadline=None, max_examples=500)
@given(st.text("aZ09_-./é:~ ", max_size=100) | st.from_regex(r"[\w.-]{1,97}(/[\w.-]{1,97})?", fullmatch=True))
def test_a_hub_takes_every_name_that_is_no_path(name: str) -> None:
    try:
        ModelSpec(name=name)
    except ValidationError:
        return
    if not is_path(name):
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            pytest.fail(str(error))


@pytest.mark.parametrize("revision", ["../../x", "/etc/x", "a/../b"])
def test_a_revision_is_no_path(revision: str) -> None:
    with pytest.raises(ValidationError, match="commit, a tag or a branch"):
        ModelSpec(name="gpt2", revision=revision)
    ModelSpec(name="gpt2", revision="refs/pr/1")


def test_the_readers_of_datasets_are_known_without_its_import() -> None:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    assert set(_PACKAGED_DATASETS_MODULES) <= packaged_loaders()
