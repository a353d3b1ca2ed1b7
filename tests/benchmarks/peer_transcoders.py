"""Trains transcoders with sparsify's coder and optimisers, in the peers' environment; started by transcoders.py.

    .venv-peers/bin/python tests/benchmarks/peer_transcoders.py FOLDER

FOLDER holds x.npy and y.npy, the rows that are read and those that are to be written, in the order of training, and
sparsify.json, a list of experiments. Each is saved as FOLDER/NAME. The step is that of the library's trainer: the mean
of y as the first decoder bias, its FVU of the batch as the loss, its signed momentum with averaged weights or Adam.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def optimizer_of(coder: Any, experiment: dict[str, Any], n_steps: int) -> tuple[Any, Any]:
    """The library's optimiser and its schedule, if it has one."""
    if experiment["optimizer"] == "signum":
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=experiment["lr"]), momentum=0.95)
        optimizer.train()
        return optimizer, None
    from transformers import get_linear_schedule_with_warmup

    adam = torch.optim.Adam(coder.parameters(), lr=experiment["lr"])
    return adam, get_linear_schedule_with_warmup(adam, n_steps // 20, n_steps)


def train(experiment: dict[str, Any], x: torch.Tensor, y: torch.Tensor) -> Any:
    """One coder, trained on all rows once."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(
        num_latents=experiment["d_sae"], k=experiment["k"], transcode=True, skip_connection=experiment["skip"]
    )
    coder, batch = SparseCoder(x.shape[1], config), experiment["batch"]
    n_steps = len(x) // batch
    optimizer, schedule = optimizer_of(coder, experiment, n_steps)
    coder.b_dec.data = y[:batch].mean(dim=0)
    for step in range(n_steps):
        here = slice(step * batch, (step + 1) * batch)
        coder(x[here], y[here]).fvu.backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    if schedule is None:
        optimizer.eval()
    return coder


def main() -> None:
    """All experiments, one after the other."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    x, y = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("x", "y"))
    for experiment in json.loads((folder / "sparsify.json").read_text()):
        torch.manual_seed(0)
        began = time.monotonic()
        train(experiment, x, y).save_to_disk(folder / experiment["name"])
        print(experiment["name"], f"{time.monotonic() - began:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
