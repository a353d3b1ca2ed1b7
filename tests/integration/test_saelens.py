"""SAELens itself reads our files. Needs an environment of its own, because its versions of shared packages differ."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sae_service import artifacts, pipeline
from sae_service.spec import JobSpec
from sae_service.storage import Storage
from tests.recorder import Recorder

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
READ = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sae_lens import SAE
folder = Path(sys.argv[1])
rows = load_file(folder / "rows.safetensors")
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(str(folder / name), device="cpu")
    with torch.no_grad():
        difference = (sae.decode(sae.encode(rows["x"])) - rows[name]).abs().max().item()
    assert difference < 1e-3, (name, difference)
    print(name, sae.cfg.architecture(), sae.cfg.metadata.hook_name, difference)
"""


@pytest.mark.skipif(not PEERS.exists(), reason="SAELens is not installed: make test-peers")
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
    x = np.random.default_rng(0).normal(scale=4, size=(64, 128)).astype(np.float32)
    rows = {"x": x}
    for name in "abcde":
        files = storage.read_published(final.key, below=f"saes/{name}/")
        for path, content in files.items():
            target = tmp_path / path.removeprefix("saes/")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        sae = artifacts.from_files({path.removeprefix(f"saes/{name}/"): content for path, content in files.items()})
        rows[name] = np.array(sae.decode(sae.encode(x)))  # pyright: ignore[reportArgumentType]
    save_file(rows, tmp_path / "rows.safetensors")
    ended = subprocess.run([PEERS, "-c", READ, tmp_path, *"abcde"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[1] for line in ended.stdout.splitlines()] == ["jumprelu", "standard", "jumprelu", "topk", "jumprelu"]
