"""The reader of pickled networks: tensors come out, nothing runs."""

import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.serialization import MAGIC_NUMBER

from cxr_lightning.metrics.extractors import pickled
from cxr_lightning.metrics.extractors.pickled import read_network

LINEAR = ("torch.nn.modules.linear.Linear",)
FORMATS = pytest.mark.parametrize("zipped", [False, True])


class _Noisy(nn.Linear):
    """A class whose own code must not run on loading."""

    def __setstate__(self, state: dict[str, object]) -> None:
        raise AssertionError("the class's code ran")


class _Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch attacked",)


@FORMATS
def test_network_and_state_dict(tmp_path: Path, zipped: bool) -> None:
    network = nn.Linear(3, 2)
    for content in (network, network.state_dict()):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        state = read_network(tmp_path / "a.pt", LINEAR)
        assert set(state) == {"weight", "bias"}
        assert torch.equal(state["weight"], network.weight)


@FORMATS
def test_classes_are_names_only(tmp_path: Path, zipped: bool) -> None:
    name = f"{_Noisy.__module__}._Noisy"
    network = _Noisy(3, 2)
    torch.save(network, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_network(tmp_path / "a.pt", (name,))["bias"], network.bias)


@FORMATS
def test_other_classes_are_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save(nn.PReLU(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match=r"activation\.PReLU"):
        read_network(tmp_path / "a.pt", LINEAR)


@FORMATS
def test_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    network = nn.Linear(3, 2)
    network.attack = _Attack()
    torch.save(network, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match="system"):
        read_network(tmp_path / "a.pt", LINEAR)
    assert not Path("attacked").exists()
    torch.load("a.pt", weights_only=False)  # the attack is a real one
    assert Path("attacked").exists()


@pytest.mark.parametrize(
    "name",
    [
        b"torch._utils\n_rebuild_parameter",
        b"collections\nOrderedDict",
        b"torch.nn.modules.linear\nLinear",
    ],
)
def test_functions_and_classes_are_not_changed(tmp_path: Path, name: bytes) -> None:
    old = [pickle.dumps(part, protocol=2) for part in (MAGIC_NUMBER, 1001, {})]
    change = b"\x80\x02c" + name + b"\nN}X\x05\x00\x00\x00dirtyK\x01s\x86b."  # BUILD with slots
    (tmp_path / "a.pt").write_bytes(b"".join(old) + change)
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        read_network(tmp_path / "a.pt", LINEAR)
    for thing in (torch._utils._rebuild_parameter, OrderedDict, pickled._Inert):
        assert not hasattr(thing, "dirty")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(3, 2)).save(tmp_path / "a.pt")
    with pytest.raises(RuntimeError, match="TorchScript"):
        read_network(tmp_path / "a.pt", LINEAR)


@FORMATS
def test_other_content_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save([torch.zeros(2)], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TypeError, match="holds a list"):
        read_network(tmp_path / "a.pt", LINEAR)
