"""Transcoders and crosscoders in every file format: what is written is read, and all else is refused by name."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.formats import FORMATS, folder, saelens
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import Sites, at
from tests.saes import CROSSCODER, DESCRIPTION, KINDS, TRANSCODER, described, of_sites, random_sae, random_transcoder, results, rows

READ, WRITE = "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"
SQUARE = Sites(((READ, 6),), ((WRITE, 6),))
STACKED = Sites(CROSSCODER.read, CROSSCODER.read)
SKIPS = (False, True)
PARTS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def own_files(sae: InferenceSAE) -> dict[str, bytes]:
    assert sae.sites is not None
    return saelens.to_own_files(sae, of_sites(sae.sites))


def changed(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The files with other values in the config, and in its metadata where they stand there."""
    config = json.loads(files["cfg.json"])
    for name, value in changes.items():
        (config["metadata"] if name in config.get("metadata", {}) else config)[name] = value
    return files | {"cfg.json": json.dumps(config).encode()}


def assert_same(read: InferenceSAE, sae: InferenceSAE) -> None:
    """The weights are the same to the last bit."""
    assert (read.k, read.sites) == (sae.k, sae.sites)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(read, part), getattr(sae, part))
    assert (read.W_skip is None) == (sae.W_skip is None)
    if sae.W_skip is not None:
        np.testing.assert_array_equal(read.W_skip, sae.W_skip)


@pytest.mark.parametrize("kind", KINDS)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    n_read=st.integers(1, 4),
    d_sae=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    skip=st.booleans(),
)
@few
def test_our_own_files_keep_any_transcoder_or_crosscoder_exactly(
    kind: str, widths: list[int], n_read: int, d_sae: int, seed: int, skip: bool
) -> None:
    named = tuple((f"blocks.{layer}.hook_resid_post", width) for layer, width in enumerate(widths))
    n_read = min(n_read, len(widths) - 1)
    for sites in (Sites(named[:n_read], named[n_read:]), Sites(named, named)):
        sae = random_transcoder(kind, sites, d_sae, seed, skip and not sites.is_autoencoder)
        assert_same(FORMATS["saelens"].from_files(own_files(sae)), sae)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize(
    ("name", "kind", "sites"), [("saelens", "relu", TRANSCODER), ("saelens", "jumprelu", TRANSCODER), ("sparsify", "topk", SQUARE)]
)
@given(d_sae=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
@few
def test_a_transcoder_is_read_exactly_as_it_was_written(
    name: str, kind: str, sites: Sites, skip: bool, d_sae: int, seed: int
) -> None:
    sae = random_transcoder(kind, sites, d_sae, seed, skip)
    files = FORMATS[name].to_files(sae, of_sites(sites))
    assert_same(FORMATS[name].from_files(files), sae)
    assert files == FORMATS[name].to_files(sae, of_sites(sites)), "the same bytes again"


@pytest.mark.parametrize(("name", "kind"), [("saelens", "jumprelu"), ("sparsify", "topk")])
def test_the_sizes_in_the_headers_are_those_of_the_encoder(name: str, kind: str, tmp_path: Path) -> None:
    for file, content in FORMATS[name].to_files(random_transcoder(kind, SQUARE), of_sites(SQUARE)).items():
        (tmp_path / file).write_bytes(content)
    assert FORMATS[name].sizes(tmp_path) == (6, 24)


# What a format cannot express.


@pytest.mark.parametrize(
    ("name", "kind", "sites", "skip", "message", "hint"),
    [
        ("saelens", "topk", TRANSCODER, False, "topk_transcoder", "Write it as sparsify"),
        ("saelens", "topk", TRANSCODER, True, "topk_skip_transcoder", "Write it as sparsify"),
        ("saelens", "relu", CROSSCODER, False, "crosscoder", "Download it without a format"),
        ("saelens", "relu", STACKED, False, "crosscoder", "Download it without a format"),
        ("sparsify", "topk", TRANSCODER, False, "rows of 6 numbers and writes rows of 5", "Download it without a format"),
        ("sparsify", "jumprelu", SQUARE, True, "TopK SAEs only", "Write it as saelens"),
        ("sparsify", "topk", STACKED, False, "crosscoder", "Download it without a format"),
        ("gemma_scope", "jumprelu", SQUARE, False, "transcoder", "Write it as saelens"),
        ("gemma_scope", "jumprelu", STACKED, False, "crosscoder", "Download it without a format"),
        ("dictionary_learning", "topk", SQUARE, False, "transcoder", "Write it as sparsify"),
        ("dictionary_learning", "relu", SQUARE, False, "transcoder", "Write it as saelens"),
        ("dictionary_learning", "relu", STACKED, False, "crosscoder", "Download it without a format"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_a_way_out(
    name: str, kind: str, sites: Sites, skip: bool, message: str, hint: str
) -> None:
    with pytest.raises(InvalidSpec, match=message) as refused:
        FORMATS[name].to_files(random_transcoder(kind, sites, skip=skip), of_sites(sites))
    assert hint in refused.value.hint


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_bypass_of_what_is_read_fits_no_format(name: str) -> None:
    kind = "topk" if name == "sparsify" else "relu"
    with_bypass = random_sae(kind).replace(W_skip=np.ones((6, 6), np.float32))
    with pytest.raises(InvalidSpec, match="bypass"):
        FORMATS[name].to_files(with_bypass, DESCRIPTION)


# Where an SAE reads and writes.


@pytest.mark.parametrize(("name", "kind"), [("saelens", "relu"), ("sparsify", "topk")])
def test_the_hook_point_of_an_sae_is_read_where_the_file_names_it(name: str, kind: str) -> None:
    files = FORMATS[name].to_files(random_sae(kind), DESCRIPTION)
    assert FORMATS[name].from_files(files).sites == at("blocks.3.hook_resid_pre", 6)
    assert FORMATS[name].from_files(changed(files, hook_name=None)).sites is None


@pytest.mark.parametrize(("name", "kind"), [("saelens", "relu"), ("sparsify", "topk")])
def test_a_transcoder_without_names_is_still_none_that_writes_what_it_reads(name: str, kind: str) -> None:
    files = FORMATS[name].to_files(random_transcoder(kind, SQUARE), of_sites(SQUARE))
    nameless = FORMATS[name].from_files(changed(files, hook_name=None, hook_name_out=None))
    assert nameless.sites == Sites((("unnamed_input", 6),), (("unnamed_output", 6),))
    with pytest.raises(InvalidSpec, match="reads and writes the same"):
        FORMATS[name].from_files(changed(files, hook_name_out=READ))


def test_an_sae_of_saelens_that_writes_elsewhere_is_a_transcoder() -> None:
    files = FORMATS["saelens"].to_files(random_sae("jumprelu"), described(READ))
    config = json.loads(files["cfg.json"])
    config["metadata"]["hook_name_out"] = WRITE
    assert FORMATS["saelens"].from_files(files | {"cfg.json": json.dumps(config).encode()}).sites == SQUARE


@pytest.mark.parametrize(
    ("sae", "words"),
    [
        (random_transcoder("relu"), f"a transcoder, which reads {READ} and writes {WRITE}"),
        (random_transcoder("topk", CROSSCODER), f"a crosscoder, .*hook_resid_post and writes {WRITE}"),
        (random_transcoder("relu", STACKED), "a crosscoder, which reads and writes blocks.1.hook_resid_post, blocks.2"),
    ],
)
def test_a_transcoder_in_a_folder_is_not_taken_for_an_sae(sae: InferenceSAE, words: str, tmp_path: Path) -> None:
    for name, content in own_files(sae).items():
        (tmp_path / name).write_bytes(content)
    assert folder.load(tmp_path).sites == sae.sites
    with pytest.raises(InvalidSpec, match=words):
        folder.check_autoencoder(folder.load(tmp_path), str(tmp_path))
    for name, content in FORMATS["saelens"].to_files(random_sae("relu"), DESCRIPTION).items():
        (tmp_path / name).write_bytes(content)
    assert folder.load(tmp_path).sites == at("blocks.3.hook_resid_pre", 6)


def test_what_dictionary_learning_trained_between_two_hook_points_is_refused() -> None:
    files = FORMATS["dictionary_learning"].to_files(random_sae("relu"), DESCRIPTION)
    config = json.loads(files["config.json"])
    config["buffer"]["io"] = "in_and_out"
    with pytest.raises(InvalidSpec, match="transcoder"):
        FORMATS["dictionary_learning"].from_files(files | {"config.json": json.dumps(config).encode()})


# What others have written, and damage.


def test_a_transcoder_of_saelens_subtracts_nothing_from_its_input() -> None:
    sae = random_transcoder("jumprelu", SQUARE, skip=True)
    files = FORMATS["saelens"].to_files(sae, of_sites(SQUARE))
    config = json.loads(files["cfg.json"])
    del config["apply_b_dec_to_input"]
    read = FORMATS["saelens"].from_files(files | {"cfg.json": json.dumps(config).encode()})
    for ours, theirs in zip(results(sae, rows()), results(read, rows()), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    with pytest.raises(InvalidSpec, match="apply_b_dec_to_input"):
        FORMATS["saelens"].from_files(changed(files, apply_b_dec_to_input=True))


def test_an_sae_of_sparsify_with_a_skip_connection_is_refused() -> None:
    files = FORMATS["sparsify"].to_files(random_transcoder("topk", SQUARE, skip=True), of_sites(SQUARE))
    with pytest.raises(InvalidSpec, match="skip_connection"):
        FORMATS["sparsify"].from_files(changed(files, transcode=False))


@pytest.mark.parametrize("reads", [None, [], {}, {"a": 6.0}, {"a": 5}, {"a": -1, "b": 7}, {"a": True, "b": 5}, {"a": "6"}])
def test_hook_points_that_do_not_fit_the_weights_are_damage(reads: Any) -> None:
    files = own_files(random_transcoder("relu", CROSSCODER))
    with pytest.raises(DamagedCheckpoint, match="add up to 6"):
        FORMATS["saelens"].from_files(changed(files, reads=reads))


@pytest.mark.parametrize("sites", [TRANSCODER, CROSSCODER])
@given(data=st.data())
@settings(few, max_examples=150)
def test_changed_bytes_are_read_or_refused(sites: Sites, data: st.DataObject) -> None:
    files = own_files(random_transcoder("topk", sites, d_sae=3, skip=True))
    file = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[file])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DamagedCheckpoint, InvalidSpec):
        FORMATS["saelens"].from_files(files | {file: bytes(content)})


def test_a_bypass_that_is_not_finite_or_turned_is_refused() -> None:
    sae = random_transcoder("relu", skip=True)
    with pytest.raises(DamagedCheckpoint, match="W_skip"):
        FORMATS["saelens"].from_files(own_files(sae.replace(W_skip=np.full((6, 5), np.nan, np.float32))))
    with pytest.raises(DamagedCheckpoint, match="W_skip has shape"):
        FORMATS["saelens"].from_files(own_files(sae.replace(W_skip=np.ones((5, 6), np.float32))))
