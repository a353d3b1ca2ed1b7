"""dictionary_learning itself reads our files, and we read its own. Needs an environment of its own."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sae_service.formats import FORMATS
from tests import peers
from tests.saes import DESCRIPTION, KINDS, every_architecture, random_sae, results, rows

CLASSES = [
    "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
]  # fmt: skip
READ = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from dictionary_learning.utils import load_dictionary
folder = Path(sys.argv[1])
rows = load_file(folder / "rows.safetensors")
for name in sys.argv[2:]:
    dictionary, config = load_dictionary(str(folder / name), "cpu")
    with torch.no_grad():
        acts = dictionary.encode(rows["x"])
        x_hat = dictionary.decode(acts)
    torch.testing.assert_close(acts, rows[name + ".acts"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x_hat, rows[name + ".x_hat"], atol=1e-5, rtol=1e-5)
    print(name, type(dictionary).__name__, config["trainer"]["layer"])
"""
WRITE = """
import json
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from dictionary_learning import utils
folder = Path(sys.argv[1])
x = load_file(folder / "rows.safetensors")["x"]
torch.manual_seed(0)
found = {}
for name in sys.argv[2:]:
    more = {"AutoEncoderTopK": {"k": 4}, "BatchTopKSAE": {"k": 4}, "MatryoshkaBatchTopKSAE": {"k": 4, "group_sizes": [8, 16]}}
    made = getattr(utils, name)(x.shape[1], 24, **more.get(name, {}))
    for parameter in made.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    if hasattr(made, "threshold"):
        made.threshold.data = made.threshold.data.abs() * 0.3
    (folder / name).mkdir()
    torch.save({key: value.cpu() for key, value in made.state_dict().items()}, folder / name / "ae.pt")
    trainer = {"dict_class": name, **more.get(name, {})}
    (folder / name / "config.json").write_text(json.dumps({"trainer": trainer}))
    loaded, _ = utils.load_dictionary(str(folder / name), "cpu")
    with torch.no_grad():
        acts = loaded.encode(x)
        found |= {name + ".acts": acts.contiguous(), name + ".x_hat": loaded.decode(acts).contiguous()}
save_file(found, folder / "found.safetensors")
"""


pytestmark = pytest.mark.skipif(not peers.has("dictionary_learning"), reason="no dictionary_learning: make test-peers")


def test_the_library_reads_ours_and_finds_the_same(tmp_path: Path) -> None:
    x = rows()
    expected = {"x": x}
    for kind in KINDS:
        sae = random_sae(kind)
        expected[f"{kind}.acts"], expected[f"{kind}.x_hat"] = results(sae, x)
        (tmp_path / kind).mkdir()
        for name, content in FORMATS["dictionary_learning"].to_files(sae, DESCRIPTION).items():
            (tmp_path / kind / name).write_bytes(content)
    save_file(expected, tmp_path / "rows.safetensors")
    printed = peers.run(READ, tmp_path, *KINDS)
    classes = ["AutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK"]
    assert printed == [f"{kind} {name} 3" for kind, name in zip(KINDS, classes, strict=True)]


def test_the_library_reads_every_architecture_and_finds_the_same(tmp_path: Path) -> None:
    x, saes = rows(d_in=16), every_architecture()
    expected = {"x": x}
    for kind, sae in saes.items():
        expected[f"{kind}.acts"], expected[f"{kind}.x_hat"] = results(sae, x)
        (tmp_path / kind).mkdir()
        for name, content in FORMATS["dictionary_learning"].to_files(sae, DESCRIPTION).items():
            (tmp_path / kind / name).write_bytes(content)
    save_file(expected, tmp_path / "rows.safetensors")
    assert [line.split()[0] for line in peers.run(READ, tmp_path, *saes)] == list(saes)


def test_we_read_each_class_of_the_library_and_find_the_same(tmp_path: Path) -> None:
    x = rows()
    save_file({"x": x}, tmp_path / "rows.safetensors")
    peers.run(WRITE, tmp_path, *CLASSES)
    found = load_file(tmp_path / "found.safetensors")
    for name in CLASSES:
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        acts, x_hat = results(FORMATS["dictionary_learning"].from_files(files), x)
        assert 0 < np.mean(acts > 0) < 1, name
        np.testing.assert_allclose(acts, found[f"{name}.acts"], atol=1e-5, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(x_hat, found[f"{name}.x_hat"], atol=1e-5, rtol=1e-5, err_msg=name)
