"""sparsify itself reads our files, and we read its own. Needs an environment of its own."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_service.formats import FORMATS
from sae_service.sae.sites import Sites
from tests import peers
from tests.saes import DESCRIPTION, of_sites, random_sae, random_transcoder, results, rows

SCRIPT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig
folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
torch.manual_seed(0)
made = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=24, k=5))
for parameter in made.parameters():
    parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
made.save_to_disk(folder / "theirs")
found = {}
for name in ("ours", "theirs"):
    coder = SparseCoder.load_from_disk(folder / name)
    with torch.no_grad():
        encoded = coder.encode(x)
        acts = torch.zeros(len(x), 24).scatter(1, encoded.top_indices, encoded.top_acts)
        found |= {name + ".acts": acts, name + ".x_hat": coder.decode(encoded.top_acts, encoded.top_indices)}
save_file(found, folder / "found.safetensors")
"""
TRANSCODERS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig
folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
torch.manual_seed(0)
found = {}
for kind in ("plain", "skip"):
    config = SparseCoderConfig(num_latents=24, k=5, transcode=True, skip_connection=kind == "skip")
    made = SparseCoder(x.shape[1], config)
    for parameter in made.parameters():
        parameter.data = 0.7 * torch.randn_like(parameter)
    made.save_to_disk(folder / ("theirs." + kind))
    for name in ("ours." + kind, "theirs." + kind):
        coder = SparseCoder.load_from_disk(folder / name)
        with torch.no_grad():
            encoded = coder.encode(x)
            acts = torch.zeros(len(x), 24).scatter(1, encoded.top_indices, encoded.top_acts)
            found |= {name + ".acts": acts, name + ".y_hat": coder(x, y=torch.zeros_like(x)).sae_out}
save_file(found, folder / "found.safetensors")
"""
SITES = Sites((("blocks.3.ln2.hook_normalized", 6),), (("blocks.3.hook_mlp_out", 6),))

pytestmark = pytest.mark.skipif(not peers.has("sparsify"), reason="no sparsify: make test-peers")


def test_sparsify_reads_ours_and_we_read_its_own(tmp_path: Path) -> None:
    x, sae, own = rows(), random_sae("topk"), FORMATS["sparsify"]
    save_file({"x": x}, tmp_path / "rows.safetensors")
    (tmp_path / "ours").mkdir()
    for name, content in own.to_files(sae, DESCRIPTION).items():
        (tmp_path / "ours" / name).write_bytes(content)
    peers.run(SCRIPT, tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    theirs = own.from_files({path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()})
    for name, item in (("ours", sae), ("theirs", theirs)):
        acts, x_hat = results(item, x)
        np.testing.assert_allclose(acts, found[f"{name}.acts"], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(x_hat, found[f"{name}.x_hat"], atol=1e-5, rtol=1e-5)


def test_sparsify_reads_our_transcoders_and_we_read_its_own(tmp_path: Path) -> None:
    x, own = rows(), FORMATS["sparsify"]
    save_file({"x": x}, tmp_path / "rows.safetensors")
    saes = {f"ours.{kind}": random_transcoder("topk", SITES, skip=kind == "skip") for kind in ("plain", "skip")}
    for folder, sae in saes.items():
        (tmp_path / folder).mkdir()
        for name, content in own.to_files(sae, of_sites(SITES)).items():
            (tmp_path / folder / name).write_bytes(content)
    peers.run(TRANSCODERS, tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    for kind in ("plain", "skip"):
        theirs = own.from_files({path.name: path.read_bytes() for path in (tmp_path / f"theirs.{kind}").iterdir()})
        assert theirs.sites is not None
        assert not theirs.sites.is_autoencoder
        assert (theirs.W_skip is None) == (kind == "plain")
        saes[f"theirs.{kind}"] = theirs
    for name, item in saes.items():
        acts, y_hat = results(item, x)
        np.testing.assert_allclose(acts, found[f"{name}.acts"], atol=1e-5, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(y_hat, found[f"{name}.y_hat"], atol=1e-5, rtol=1e-5, err_msg=name)
