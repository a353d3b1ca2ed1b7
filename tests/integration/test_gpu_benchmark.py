"""The benchmark of a device runs at a small size on any machine, and its shares are of what the machine can do."""

import json
from pathlib import Path

from tests.benchmarks import gpu


def test_it_measures_ceilings_and_shares_and_a_whole_job_and_writes_them(tmp_path: Path) -> None:
    gpu.main(["--small", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["ceilings"]) == {"float32", "bfloat16", "copy"}
    assert [(line["what"], line["precision"]) for line in found["lines"]] == [
        ("step, topk", "float32"), ("step, topk", "bfloat16"), ("model, 2 layers", "float32"), ("model, 2 layers", "bfloat16"),
    ]  # fmt: skip
    assert all(line["share"] > 0 for line in found["lines"])
    assert found["job"]["job_tokens_per_s"] > 0
    assert found["job"]["figures"]["topk_256"]["fvu"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith(f"# {found['device']}\n")
    assert "| step, topk | bfloat16 |" in table
