"""What holds for every architecture that does not write what it reads at one hook point: transcoders and crosscoders."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_service.architectures import ARCHITECTURES
from sae_service.errors import InvalidSpec
from sae_service.sae.architecture import Architecture
from sae_service.sae.coder import Coder, norms
from sae_service.sae.inference import InferenceSAE, unscaled
from sae_service.schema import BypassConfig
from tests.planted import CROSSCODED, TRANSCODED, Task, exports_as_trained, fitted, rows_of, trained

BYPASSED = [kind for kind, architecture in ARCHITECTURES.items() if isinstance(architecture.example, BypassConfig)]
SCALES = {"in": 0.05, "out": 3.0, "early": 0.2, "late": 7.0}


@dataclasses.dataclass(frozen=True)
class Trained:
    """An architecture after training, and the FVU of the first and the last step."""

    architecture: Architecture
    task: Task
    parameters: Any
    first: float
    last: float

    @property
    def coder(self) -> Coder:
        """Its encoder and decoder."""
        return self.parameters if isinstance(self.parameters, Coder) else self.parameters.coder

    def export(self) -> InferenceSAE:
        """Its public form."""
        return self.architecture.export(self.architecture.example, self.parameters)


def train(architecture: Architecture, task: Task) -> Trained:
    state, (first, last) = trained(architecture, 400, task=task, state=fitted(architecture, task))
    return Trained(architecture, task, state.parameters, first, last)


def with_bypass(kind: str) -> Architecture:
    architecture = ARCHITECTURES[kind]
    return dataclasses.replace(architecture, example=architecture.example.model_copy(update={"skip": True}))


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *(f"{kind} with a bypass" for kind in BYPASSED)])
def transcoder(request: pytest.FixtureRequest) -> Trained:
    kind, *bypass = request.param.split()
    return train(with_bypass(kind) if bypass else ARCHITECTURES[kind], TRANSCODED)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def crosscoder(request: pytest.FixtureRequest) -> Trained:
    return train(ARCHITECTURES[request.param], CROSSCODED)


def does_the_same_for_raw_rows(of: Trained) -> None:
    """Asserts that unscaling undoes the scales that the rows of each hook point were multiplied by."""
    exported, rows, sites = of.export(), rows_of(of.architecture, of.task), of.task.sites
    read, write = (np.concatenate([np.full(width, SCALES[name]) for name, width in widths]) for widths in (sites.read, sites.write))
    raw, x = unscaled(exported, SCALES, SCALES), rows.x / read
    y_hat = raw.decode(raw.encode(x), x) * write
    np.testing.assert_allclose(y_hat, exported.decode(exported.encode(rows.x), rows.x), atol=1e-4)


def test_a_transcoder_learns_what_it_is_to_write(transcoder: Trained) -> None:
    assert transcoder.last < min(transcoder.first, 1.0) / 2


def test_a_transcoders_export_writes_as_training_did(transcoder: Trained) -> None:
    exports_as_trained(transcoder.architecture, transcoder.parameters, rows_of(transcoder.architecture, TRANSCODED))
    assert transcoder.export().sites == TRANSCODED.sites


def test_a_transcoder_has_a_bypass_where_it_is_asked_for_which_training_moves(transcoder: Trained) -> None:
    W_skip = transcoder.coder.W_skip
    if getattr(transcoder.architecture.example, "skip", False):
        assert W_skip is not None
        assert float(jnp.min(jnp.max(jnp.abs(W_skip), axis=1))) > 1e-3
    else:
        assert W_skip is None


def test_a_transcoder_does_the_same_for_raw_rows(transcoder: Trained) -> None:
    does_the_same_for_raw_rows(transcoder)


def test_a_transcoder_starts_from_what_it_has_trained(transcoder: Trained) -> None:
    architecture, exported = transcoder.architecture, transcoder.export()
    found = architecture.from_inference(architecture.example, exported)
    assert jax.tree.structure(found) == jax.tree.structure(transcoder.parameters)
    again, x = architecture.export(architecture.example, jax.tree.map(jnp.asarray, found)), rows_of(architecture, TRANSCODED).x
    np.testing.assert_allclose(again.decode(again.encode(x), x), exported.decode(exported.encode(x), x), atol=1e-5)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_a_bypass_that_the_config_does_not_have_is_refused(kind: str) -> None:
    architecture = ARCHITECTURES[kind]
    sae = architecture.export(architecture.example, fitted(architecture, TRANSCODED).parameters)
    with pytest.raises(InvalidSpec, match="bypass") as caught:
        architecture.from_inference(architecture.example, sae.replace(W_skip=np.zeros((16, 12), np.float32)))
    assert caught.value.param == ("/architecture/skip" if kind in BYPASSED else "/architecture/kind")


def test_a_crosscoder_learns_the_rows_of_both_hook_points(crosscoder: Trained) -> None:
    assert crosscoder.last < crosscoder.first / 2


def test_a_crosscoders_export_writes_as_training_did(crosscoder: Trained) -> None:
    exports_as_trained(crosscoder.architecture, crosscoder.parameters, rows_of(crosscoder.architecture, CROSSCODED))


def test_a_crosscoders_norm_is_the_sum_of_those_by_hook_point(crosscoder: Trained) -> None:
    W_dec = np.asarray(crosscoder.coder.W_dec)
    expected = np.linalg.norm(W_dec[:, :10], axis=1) + np.linalg.norm(W_dec[:, 10:], axis=1)
    np.testing.assert_allclose(norms(crosscoder.coder), expected, rtol=1e-5)


def test_a_crosscoder_does_the_same_for_raw_rows(crosscoder: Trained) -> None:
    does_the_same_for_raw_rows(crosscoder)
