"""SAELens itself reads our files, and we read its own. Needs an environment of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_service import pipeline
from sae_service.formats import FORMATS, saelens
from sae_service.spec import JobSpec
from sae_service.storage import artifacts
from sae_service.storage.objects import Storage
from tests import peers
from tests.published import published
from tests.recorder import Recorder
from tests.saes import (
    CROSSCODER,
    DESCRIPTION,
    TRANSCODER,
    every_architecture,
    of_sites,
    random_transcoder,
    results_in_float64,
)
from tests.saes import rows as rows_to_encode

READ = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sae_lens import SAE
folder = Path(sys.argv[1])
rows = load_file(folder / "rows.safetensors")
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(str(folder / name), device="cpu").double()
    with torch.no_grad():
        difference = (sae.decode(sae.encode(rows["x"])) - rows[name]).abs().max().item()
    assert difference < 1e-5, (name, difference)
    print(name, sae.cfg.architecture(), sae.cfg.metadata.hook_name, difference)
"""
WRITE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import GatedSAE, GatedSAEConfig, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
torch.manual_seed(0)
kinds = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
    "jumprelu_centred": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": True}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
    "topk_rescaled": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
}
found = {}
for name, (sae_class, config_class, more) in kinds.items():
    made = sae_class(config_class(d_in=x.shape[1], d_sae=24, **more))
    for parameter in made.parameters():
        parameter.data = 0.7 * torch.randn_like(parameter)
    made.save_model(folder / name)
    loaded = sae_class.load_from_disk(str(folder / name)).double()
    with torch.no_grad():
        acts = loaded.encode(x)
        found |= {name + ".acts": acts.contiguous(), name + ".x_hat": loaded.decode(acts).contiguous()}
    print(name)
save_file(found, folder / "found.safetensors")
"""
READ_TRANSCODERS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sae_lens import SAE
folder = Path(sys.argv[1])
rows = load_file(folder / "rows.safetensors")
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(str(folder / name), device="cpu").double()
    sae.dtype = torch.float64
    with torch.no_grad():
        difference = (sae(rows["x"]) - rows[name]).abs().max().item()
        acts = (sae.encode(rows["x"]) - rows[name + ".acts"]).abs().max().item()
    assert max(difference, acts) < 1e-5, (name, difference, acts)
    print(sae.cfg.architecture(), sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out, sae.cfg.d_out)
"""
WRITE_TRANSCODERS = """
import sys
from pathlib import Path
import sae_lens
import torch
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
torch.manual_seed(0)
found = {}
for name in ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"):
    made_class, config_class = getattr(sae_lens, name), getattr(sae_lens, name + "Config")
    made = made_class(config_class(d_in=x.shape[1], d_out=5, d_sae=24, apply_b_dec_to_input=False))
    made.cfg.metadata.hook_name, made.cfg.metadata.hook_name_out = "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"
    for parameter in made.parameters():
        parameter.data = 0.7 * torch.randn_like(parameter)
    made.save_model(folder / name)
    loaded = made_class.load_from_disk(str(folder / name)).double()
    loaded.dtype = torch.float64
    with torch.no_grad():
        found |= {name + ".acts": loaded.encode(x).contiguous(), name + ".y_hat": loaded(x).contiguous()}
    print(name)
save_file(found, folder / "found.safetensors")
"""
REFUSE = """
import sys
from pathlib import Path
from sae_lens import SAE
for path in sys.argv[2:]:
    try:
        SAE.load_from_disk(str(Path(sys.argv[1]) / path), device="cpu")
    except Exception as error:
        assert path in str(error), (path, error)
        print(path)
"""


pytestmark = pytest.mark.skipif(not peers.has("sae_lens"), reason="SAELens is not installed: make test-peers")


def test_saelens_loads_each_kind_and_reconstructs_the_same(spec: dict[str, Any], tmp_path: Path) -> None:
    more = [{"kind": "gated"}, {"kind": "topk", "k": 8}, {"kind": "batchtopk", "k": 8}]
    saes = spec["saes"] + [
        {"name": name, "hook_name": "blocks.1.hook_resid_post", "architecture": {"d_sae": 256, **architecture}}
        for name, architecture in zip("cde", more, strict=True)
    ]
    job = JobSpec.model_validate(spec | {"saes": saes})
    storage = Storage((tmp_path / "storage").as_uri())
    final = pipeline.run(job, storage, "job", Recorder())
    assert final is not None
    x = np.random.default_rng(0).normal(scale=4, size=(64, 128))
    rows = {"x": x}
    for name in "abcde":
        files = published(storage, final.key, below=f"saes/{name}/")
        for path, content in files.items():
            target = tmp_path / path.removeprefix("saes/")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        sae = artifacts.from_files({path.removeprefix(f"saes/{name}/"): content for path, content in files.items()})
        rows[name] = results_in_float64(sae, x)[1]
    save_file(rows, tmp_path / "rows.safetensors")
    kinds = [line.split()[1] for line in peers.run(READ, tmp_path, *"abcde")]
    assert kinds == ["jumprelu", "standard", "jumprelu", "topk", "jumprelu"]


def test_saelens_loads_every_architecture_and_reconstructs_the_same(tmp_path: Path) -> None:
    x, saes = rows_to_encode(d_in=16).astype(np.float64), every_architecture()
    expected = {"x": x}
    for kind, sae in saes.items():
        expected[kind] = results_in_float64(sae, x)[1]
        (tmp_path / kind).mkdir()
        for name, content in FORMATS["saelens"].to_files(sae, DESCRIPTION).items():
            (tmp_path / kind / name).write_bytes(content)
    save_file(expected, tmp_path / "rows.safetensors")
    assert [line.split()[0] for line in peers.run(READ, tmp_path, *saes)] == list(saes)


def test_we_read_each_kind_of_saelens_and_find_the_same(tmp_path: Path) -> None:
    x = rows_to_encode()
    save_file({"x": x.astype(np.float64)}, tmp_path / "rows.safetensors")
    names = peers.run(WRITE, tmp_path)
    assert len(names) == 6
    found = load_file(tmp_path / "found.safetensors")
    for name in names:
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        acts, x_hat = results_in_float64(FORMATS["saelens"].from_files(files), x)
        assert 0 < np.mean(acts > 0) < 1, name
        np.testing.assert_allclose(acts, found[f"{name}.acts"], atol=1e-5, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(x_hat, found[f"{name}.x_hat"], atol=1e-5, rtol=1e-5, err_msg=name)


def test_saelens_loads_each_kind_of_transcoder_and_writes_the_same(tmp_path: Path) -> None:
    x = rows_to_encode().astype(np.float64)
    expected, kinds = {"x": x}, []
    for kind, prefix in (("relu", ""), ("jumprelu", "jumprelu_")):
        for skip in (False, True):
            name = f"{prefix}{'skip_' if skip else ''}transcoder"
            kinds.append(name)
            sae = random_transcoder(kind, skip=skip)
            expected[f"{name}.acts"], expected[name] = results_in_float64(sae, x)
            (tmp_path / name).mkdir()
            for file, content in FORMATS["saelens"].to_files(sae, of_sites(TRANSCODER)).items():
                (tmp_path / name / file).write_bytes(content)
    save_file(expected, tmp_path / "rows.safetensors")
    places = "blocks.3.ln2.hook_normalized blocks.3.hook_mlp_out 5"
    assert peers.run(READ_TRANSCODERS, tmp_path, *kinds) == [f"{kind} {places}" for kind in kinds]


def test_we_read_each_transcoder_of_saelens_and_write_the_same(tmp_path: Path) -> None:
    x = rows_to_encode()
    save_file({"x": x.astype(np.float64)}, tmp_path / "rows.safetensors")
    names = peers.run(WRITE_TRANSCODERS, tmp_path)
    assert len(names) == 4
    found = load_file(tmp_path / "found.safetensors")
    for name in names:
        sae = FORMATS["saelens"].from_files({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        assert sae.sites == TRANSCODER
        acts, y_hat = results_in_float64(sae, x)
        assert 0 < np.mean(acts > 0) < 1, name
        np.testing.assert_allclose(acts, found[f"{name}.acts"], atol=1e-5, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(y_hat, found[f"{name}.y_hat"], atol=1e-5, rtol=1e-5, err_msg=name)


def test_saelens_refuses_the_files_that_only_we_read_by_their_name(tmp_path: Path) -> None:
    saes = {
        "topk_transcoder": random_transcoder("topk"),
        "topk_skip_transcoder": random_transcoder("topk", skip=True),
        "crosscoder": random_transcoder("relu", CROSSCODER),
        "jumprelu_skip_crosscoder": random_transcoder("jumprelu", CROSSCODER, skip=True),
    }
    for kind, sae in saes.items():
        assert sae.sites is not None
        (tmp_path / kind).mkdir()
        for name, content in saelens.to_own_files(sae, of_sites(sae.sites)).items():
            (tmp_path / kind / name).write_bytes(content)
    assert peers.run(REFUSE, tmp_path, *saes) == list(saes)
