"""torch's files: torch and we read each other's, and a file that would do anything else is refused by name."""

import contextlib
import io
import os
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_service.errors import DamagedCheckpoint
from sae_service.formats import FORMATS, torch_zip
from tests.saes import DESCRIPTION, KINDS, random_sae

few = settings(max_examples=60, deadline=None)


def written(kind: str = "relu") -> dict[str, bytes]:
    return FORMATS["dictionary_learning"].to_files(random_sae(kind), DESCRIPTION)


dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool])
shapes = st.lists(st.integers(0, 4), max_size=3)


@given(st.dictionaries(st.text(max_size=8), st.tuples(dtypes, shapes, st.booleans(), st.integers(0, 3)), max_size=4))
@few
def test_torchs_own_files_are_read(described: dict[str, tuple[torch.dtype, list[int], bool, int]]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, (dtype, shape, transposed, start) in described.items():
        whole = torch.randn(start + int(np.prod(shape)), generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
        tensor = whole[start:].reshape(shape)
        tensors[name] = tensor.T if transposed and tensor.ndim == 2 else tensor
    file = io.BytesIO()
    torch.save(tensors, file)
    read = torch_zip.from_bytes(file.getvalue(), "ae.pt")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(read[name], expected.numpy())
        assert read[name].dtype == expected.numpy().dtype


def test_the_state_of_a_module_and_its_parameters_are_read() -> None:
    module = torch.nn.Linear(3, 4)
    for state in (module.state_dict(), dict(module.named_parameters())):
        file = io.BytesIO()
        torch.save(state, file)
        read = torch_zip.from_bytes(file.getvalue(), "ae.pt")
        np.testing.assert_array_equal(read["weight"], module.weight.detach().numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_torch_reads_our_files_as_bare_tensors(kind: str) -> None:
    files = written(kind)
    loaded = torch.load(io.BytesIO(files["ae.pt"]), weights_only=True)
    for name, tensor in torch_zip.from_bytes(files["ae.pt"], "ae.pt").items():
        np.testing.assert_array_equal(loaded[name].numpy(), tensor)
        assert loaded[name].shape == tensor.shape


def with_program(program: bytes) -> dict[str, bytes]:
    """Our files with another pickle inside."""
    files = written()
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files["ae.pt"])) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return files | {"ae.pt": file.getvalue()}


class Bomb:
    """What runs a command when it is loaded without care."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(protocol: int, tmp_path: Any) -> None:
    content = pickle.dumps({"bias": Bomb(tmp_path / "ran")}, protocol=protocol)
    with pytest.raises(DamagedCheckpoint, match=r"instruction|system"):
        FORMATS["dictionary_learning"].from_files(with_program(content))
    file = io.BytesIO()
    torch.save({"bias": Bomb(tmp_path / "ran")}, file)
    files = written()
    for hostile in (file.getvalue(), content):
        with pytest.raises(DamagedCheckpoint):
            FORMATS["dictionary_learning"].from_files(files | {"ae.pt": hostile})
    assert not (tmp_path / "ran").exists()


def test_a_refusal_names_what_the_pickle_asks_for() -> None:
    for program, name in [(b"cos\nsystem\n.", "os.system"), (b"ctorch\nload\n.", "torch.load"), (b"].", "EMPTY_LIST")]:
        with pytest.raises(DamagedCheckpoint, match=name):
            FORMATS["dictionary_learning"].from_files(with_program(program))


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + b"K\x00(K\x07t(K\x01tt" + b"Rs.",  # too long
        b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + b"K\x03(K\x04t(K\x01tt" + b"Rs.",  # starts too late
        b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + b"J\xff\xff\xff\xff(K\x01t(K\x01tt" + b"Rs.",  # before it
        b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + b"K\x00(J\x00\x00\x00\x7ft(K\x00tt" + b"Rs.",  # repeats
        b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + b"K\x00(K\x02t(J\x00\x00\x00\x7ftt" + b"Rs.",  # strides
        b"\x80\x02}X\x01\x00\x00\x00aX\x01\x00\x00\x00bs.",  # no tensor
        b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 200 + b"K\x01s.",  # a key that would take for ever to hash
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02}X\x01\x00\x00\x00aNu.",
        b"",
    ],
)
def test_a_program_that_leaves_its_bounds_is_refused(program: bytes) -> None:
    with pytest.raises(DamagedCheckpoint):
        FORMATS["dictionary_learning"].from_files(with_program(program))


instructions = st.sampled_from([
    *(bytes([code]) for code in b"()}0tuRsbQN\x85\x86\x87\x88\x89.:]"), b"K\x00", b"K\x06", b"q\x00", b"h\x00",
    b"X\x01\x00\x00\x00a", STORAGE, TENSOR, b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"cos\nsystem\n",
])  # fmt: skip


@given(st.lists(instructions, max_size=12).map(b"".join) | st.binary(max_size=60))
@settings(few, max_examples=400)
def test_any_program_is_read_or_refused(program: bytes) -> None:
    with contextlib.suppress(DamagedCheckpoint):
        FORMATS["dictionary_learning"].from_files(with_program(b"\x80\x02" + program + b"."))
