"""Whatever bytes a file has, a look at it is over soon, takes little memory, and ends in an answer or an error with a field."""

import io
import json
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sae_service.activations.model_files import checked_folder
from sae_service.errors import SAEServiceError
from sae_service.formats import FORMATS
from sae_service.preflight import columns_of
from sae_service.readable import LARGEST_LOOK, Roots
from sae_service.spec import SAESpec
from sae_service.training import start

INDEX = "model.safetensors.index.json"
SAFETENSORS = b"\x02\0\0\0\0\0\0\0{}"
SECONDS, BYTES = 2, 64 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


CONTENT = (
    st.binary(max_size=300)
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"weight_map": value, "trainer": value, "W_enc": {"shape": value}}).encode())
    | st.binary(max_size=200).map(lambda header: len(header).to_bytes(8, "little") + header)
    | st.dictionaries(st.sampled_from(["W_enc.npy", "archive/data.pkl", "archive/data/0"]), st.binary(max_size=200)).map(zipped)
)


class Large(bytes):
    """What is not to be printed."""

    def __repr__(self) -> str:
        return f"{len(self)} bytes that begin with {bytes(self[:8])!r}"


BOMB = Large(zipped({"archive/data.pkl": b"\0" * (80 << 20), "W_enc.npy": b"\0" * (80 << 20)}))
MANY_MEMBERS = Large(zipped({str(number): b"" for number in range(30_000)}))


def of_model(folder: Path, name: str) -> None:
    for other, content in (("config.json", b"{}"), ("model.safetensors", SAFETENSORS)):
        if other != name:
            (folder / other).write_bytes(content)
    checked_folder(str(folder), Roots((folder,)))


def of_text(folder: Path, name: str) -> None:
    columns_of(str(folder / name))


def of_sae(folder: Path, name: str) -> None:
    (format,) = (format for format in FORMATS if FORMATS[format].files[-1] == name)
    config = {"architecture": "standard", "trainer": {"activation_dim": 4, "dict_size": 8}}
    for file in ("config.json", "cfg.json"):
        (folder / file).write_text(json.dumps(config))
    spec = {"hook_name": "hook_a", "architecture": {"kind": "standard", "d_sae": 8}}
    spec["initial"] = {"path": str(folder), "format": format}
    start.check(SAESpec.model_validate(spec), 0, {}, Roots((folder,)))


@pytest.mark.parametrize(
    ("look", "name"),
    [
        (of_text, "a.jsonl"), (of_text, "a.jsonl.xz"), (of_text, "a.jsonl.gz"), (of_text, "a.parquet"),
        (of_model, "config.json"), (of_model, INDEX), (of_model, "model.safetensors"),
        (of_sae, "params.npz"), (of_sae, "ae.pt"), (of_sae, "sae_weights.safetensors"), (of_sae, "sae.safetensors"),
    ],
)  # fmt: skip
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(content=CONTENT)
@example(content=b"")
@example(content=Large(b"[" * 200_000))
@example(content=Large(b"\n" * LARGEST_LOOK + b"\n"))
@example(content=b"\xff" * 8 + b"{}")
@example(content=BOMB)
@example(content=MANY_MEMBERS)
@example(content=b"PAR1" + b"\xff\xff\xff\x7fPAR1")
def test_any_file_has_an_answer(look: Callable[[Path, str], None], name: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        tracemalloc.start()
        began = time.process_time()
        param: str | None = "/"
        try:
            look(Path(folder), name)
        except SAEServiceError as error:
            param = error.param
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert param is not None
        assert time.process_time() - began < SECONDS
        assert most < BYTES
