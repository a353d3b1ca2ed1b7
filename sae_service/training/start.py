"""How an SAE's training starts: from a checkpoint, from weights that were trained before, or drawn and fitted to rows.

Shapes come first and without memory. Each state is then made where it will live, and exactly once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sae_service import hosts
from sae_service.architectures import ARCHITECTURES
from sae_service.errors import DamagedCheckpoint, InvalidSpec
from sae_service.formats import FORMATS, folder
from sae_service.formats.file_format import unpacked_bytes
from sae_service.numerics import spread
from sae_service.readable import EVERYWHERE, LARGEST_LOOK, Roots
from sae_service.sae.architecture import Architecture, Rows
from sae_service.sae.inference import InferenceSAE, unscaled
from sae_service.sae.sites import Sites, check_width, columns
from sae_service.schema import ArchitectureConfig, Moments, Normalization
from sae_service.spec import InitialSpec, JobSpec, SAESpec
from sae_service.spec.stream import SAMPLE_ROWS
from sae_service.training.placement import Placement
from sae_service.training.step import Served, TrainState, begun

Scales = dict[str, float]
"""The scalar of each hook point of an SAE."""


def shapes(sae: SAESpec, sites: Sites) -> TrainState:
    """The shapes of an SAE's state. No memory is taken."""
    architecture = ARCHITECTURES[sae.architecture.kind]

    def drawn() -> TrainState:
        parameters = architecture.init(sae.architecture, sites, jax.random.key(0))
        return begun(architecture, sae.architecture, sites, parameters, sae.optimizer.moments)

    return jax.eval_shape(drawn)


def drawn_and_fitted(
    job: JobSpec, sae: SAESpec, sites: Sites, scales: Scales, rows: Mapping[str, Array], placement: Placement
) -> TrainState:
    """The state of an SAE drawn by its seed and the job's, and fitted to a sample of the rows that it will see."""
    config = sae.architecture
    read = tuple(rows[name] for name in sae.reads)
    write = None if sites.is_autoencoder else tuple(rows[name] for name in sae.writes)
    place = placement.by_sae[sae.name]
    sample = jax.tree.map(partial(hosts.put, sharding=place.whole), _sampled(Served(read, write)))
    made = jax.jit(_drawn_and_fitted, static_argnums=(0, 1, 2, 3), out_shardings=place.of(shapes(sae, sites)))
    numbers = {name: np.float32(value) for name, value in config.numbers().items()}
    seeds = np.array([job.stream.seed, sae.seed], np.uint32)
    columns = column_scales(sites, scales)
    compiled_in = ARCHITECTURES[config.kind], config.structure(), sites, sae.optimizer.moments
    return made(*compiled_in, numbers, seeds, sample, columns)


@jax.jit
def _sampled(served: Served) -> Served:
    """Some of the rows of a fill: neighbours are tokens of one text."""
    return jax.tree.map(lambda part: spread(part, SAMPLE_ROWS).astype(jnp.float32), served)


def _drawn_and_fitted(
    architecture: Architecture, structure: ArchitectureConfig, sites: Sites, kept: Moments, numbers: dict[str, Array],
    seeds: Array, sample: Served, columns: tuple[Array, Array],
) -> TrainState:  # fmt: skip
    config = structure.with_numbers(numbers)
    key: Any = jax.random.fold_in(jax.random.key(seeds[0]), seeds[1])
    x = jnp.concatenate(sample.read, axis=1) * columns[0]
    y = x if sample.write is None else jnp.concatenate(sample.write, axis=1) * columns[1]
    parameters = architecture.fit_to_rows(config, architecture.init(config, sites, key), Rows(x, y))
    return begun(architecture, config, sites, parameters, kept)


def column_scales(sites: Sites, scales: Scales) -> tuple[np.ndarray, np.ndarray]:
    """One scale for each column that is read, and for each that is written."""
    return columns(sites.read, scales), columns(sites.write, scales)


@jax.jit
def mean_norms(rows: Array) -> tuple[Array, Array]:
    """The mean square of the rows' norms, and the mean of the norms, in one pass."""
    squares = jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=1)
    return jnp.mean(squares), jnp.mean(jnp.sqrt(squares))


def scale_of(normalization: Normalization, mean_square: float, mean_norm: float, width: int) -> float:
    """The scalar that normalises rows like these, by the SAE's convention."""
    match normalization:
        case "unit_mean_square":
            return mean_square**-0.5
        case "sqrt_d_in":
            return width**0.5 / mean_norm
        case _:
            return 1.0


def measured_scales(job: JobSpec, rows: Mapping[str, Array]) -> dict[str, Scales]:
    """The scales of every SAE, measured on a fill: one pass for each hook point."""
    norms = {name: jax.device_get(mean_norms(found)) for name, found in rows.items()}

    def scale(sae: SAESpec, name: str) -> float:
        mean_square, mean_norm = norms[name]
        return scale_of(sae.normalization, float(mean_square), float(mean_norm), rows[name].shape[1])

    return {sae.name: {name: scale(sae, name) for name in (*sae.reads, *sae.writes)} for sae in job.saes}


def from_weights(sae: SAESpec, sites: Sites, scales: Scales, initial: "Initial", placement: Placement) -> TrainState:
    """The state of an SAE that starts from weights that were trained before, each in a buffer of its own."""
    architecture = ARCHITECTURES[sae.architecture.kind]
    found = jax.tree.map(lambda leaf: np.array(leaf, np.float32), parameters(sae, initial, scales, sites))
    places = placement.by_sae[sae.name].of(shapes(sae, sites))
    made = jax.jit(partial(begun, architecture, sae.architecture, sites, kept=sae.optimizer.moments), out_shardings=places)
    return made(placement.put(sae.name, found))


@dataclass(frozen=True)
class Initial:
    """The weights that an SAE starts from, for raw activations, and the hash of their files."""

    sae: InferenceSAE
    sha256: str


def folder_of(initial: InitialSpec, roots: Roots) -> Path:
    """The folder that is read. Raises InvalidSpec if it, or a file of the format, lies outside of `roots` or is none."""
    folder = roots.inside(initial.path, "/initial/path")
    for name in FORMATS[initial.format].files:
        if not roots.hold(folder / name):
            raise roots.refusal(f"{initial.path}/{name}", "/initial/path")
        if not (folder / name).is_file():
            raise InvalidSpec(f"{initial.path} has no file {name}, which the format {initial.format} has")
    return folder


def check(spec: SAESpec, index: int, widths: Mapping[str, int], roots: Roots = EVERYWHERE) -> None:
    """Raises InvalidSpec, with the field's pointer, if the SAE at `index` cannot start from what it names.

    The sizes come from the headers; small files are read as a whole, and larger ones left to the training process. No device
    is touched.

    Args:
        widths: of the hook points, as far as they are known yet.
    """
    initial = spec.initial
    if initial is None:
        return
    with _of_sae(index):
        folder, format = folder_of(initial, roots), FORMATS[initial.format]
        d_in, d_sae = format.sizes(folder)
        _check_sizes(spec, d_in, d_sae, widths)
        is_small = sum(unpacked_bytes(folder / name) for name in format.files) <= LARGEST_LOOK
    if is_small:
        load(spec, index, widths, roots)


def load_all(job: JobSpec, widths: Mapping[str, int], roots: Roots = EVERYWHERE) -> dict[str, Initial]:
    """What the SAEs of a job start from that name something, by their names."""
    return {sae.name: load(sae, index, widths, roots) for index, sae in enumerate(job.saes) if sae.initial is not None}


def load(spec: SAESpec, index: int, widths: Mapping[str, int], roots: Roots = EVERYWHERE) -> Initial:
    """What the SAE at `index` starts from. Raises InvalidSpec, with the field's pointer, if that is not possible."""
    assert spec.initial is not None
    with _of_sae(index):
        reads, writes = spec.reads, spec.writes
        if len(reads) != 1 or len(writes) != 1:
            raise InvalidSpec("a crosscoder cannot start from weights that were trained before", "/initial")
        files = folder.read(folder_of(spec.initial, roots), spec.initial.format)
        sha256 = folder.digest(files)
        if spec.initial.sha256 not in (None, sha256):
            raise InvalidSpec(f"the files have changed: their hash is {sha256}", "/initial/sha256")
        sae = FORMATS[spec.initial.format].from_files(files)
        (d_read, d_sae), d_write = sae.W_enc.shape, sae.W_dec.shape[1]
        _check_sizes(spec, d_read, d_sae, widths)
        if sae.sites is not None and sae.sites.is_autoencoder != (spec.hook_name_out is None):
            found, wanted = ("an SAE", "a transcoder") if sae.sites.is_autoencoder else ("a transcoder", "an SAE")
            raise InvalidSpec(f"the files hold {found}, and {wanted} is to be trained", "/initial/path")
        (read,), (written,) = reads, writes
        check_width("writes", d_write, written, widths.get(written, d_write))
        initial = Initial(sae, sha256)
        sites = Sites(((read, d_read),), ((written, d_write),))
        parameters(spec, initial, dict.fromkeys(sites.hook_names, 1.0), sites)
        return initial


def parameters(spec: SAESpec, initial: Initial, scales: Scales, sites: Sites) -> Any:
    """The parameters, as NumPy arrays, that do the same on scaled rows. Raises InvalidSpec if there are none."""
    inverse = {name: 1 / scale for name, scale in scales.items()}
    sae = unscaled(initial.sae.replace(sites=sites), inverse, inverse)
    return ARCHITECTURES[spec.architecture.kind].from_inference(spec.architecture, sae)


def _check_sizes(spec: SAESpec, d_in: int, d_sae: int, widths: Mapping[str, int]) -> None:
    if d_sae != spec.architecture.d_sae:
        raise InvalidSpec(f"must be {d_sae}, as in the SAE that it starts from", "/architecture/d_sae")
    check_width("reads", d_in, spec.reads[0], widths.get(spec.reads[0], d_in))


@contextmanager
def _of_sae(index: int) -> Iterator[None]:
    """Makes what is wrong with the files or the SAE an error of a field of the SAE at `index`."""
    try:
        yield
    except (InvalidSpec, DamagedCheckpoint) as error:
        raise InvalidSpec(error.message, f"/saes/{index}{error.param or '/initial/path'}", error.hint) from error
