"""The figures of `make demo`, for whatever measures or shows them: written once, in `tests/benchmarks/results/demo.json`."""

import json
from pathlib import Path

import pytest

DEMO_FIGURES: dict[str, dict[str, float]] = json.loads(
    (Path(__file__).parent / "benchmarks" / "results" / "demo.json").read_text()
)["saes"]


def are_the_demos(name: str, measured: dict[str, float]) -> None:
    """Fails unless an SAE's figures are those of the demo, but for what another processor's rounding makes of them."""
    expected = DEMO_FIGURES[name]
    assert measured["l0"] == pytest.approx(expected["l0"], rel=0.1)
    assert measured["fvu"] == pytest.approx(expected["fvu"], rel=0.1)
    assert measured["ce_loss_recovered"] == pytest.approx(expected["ce_loss_recovered"], abs=0.005)
    assert measured["dead_share"] == pytest.approx(expected["dead_share"], abs=0.01)
