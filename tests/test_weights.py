from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustgen.errors import ArtifactError
from robustgen.weights import read_weights, state_sha256


class Explosive:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def net() -> nn.Module:
    """A network with a batch norm, and so with a counter among its buffers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def saved(path: Path, content: object) -> Path:
    """The path, after torch.save."""
    torch.save(content, path)
    return path


def test_safetensors_round_trip(tmp_path: Path) -> None:
    """Tensors come back equal, with the hash of the file."""
    path, state = tmp_path / "a.safetensors", net().state_dict()
    save_file(state, path)
    weights = read_weights(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == weights.sha256
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    weights.load_into(other, "toy")
    assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    ],
    ids=["plain", "state_dict", "nested", "parallel", "compiled"],
)
def test_checkpoints_are_unwrapped(tmp_path: Path, suffix: str, wrap: Callable[[Any], Any]) -> None:
    """The names of the network are found, however a training script has packed them."""
    state = net().state_dict()
    weights = read_weights(saved(tmp_path / f"a{suffix}", wrap(state)))
    assert list(state) == list(weights.tensors)
    assert all(torch.equal(state[key], value) for key, value in weights.tensors.items())


def test_old_files_without_counters_load(tmp_path: Path) -> None:
    """A file from before batch norm counted its batches still fits."""
    state = {key: value for key, value in net().state_dict().items() if "num_batches" not in key}
    other = net()
    read_weights(saved(tmp_path / "a.pt", state)).load_into(other, "toy")
    assert torch.equal(state["0.weight"], other.state_dict()["0.weight"])


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """Neither a hostile file nor a whole pickled module is loaded; the code in it is named."""
    mark = tmp_path / "mark"
    with pytest.raises(ArtifactError, match=r"contains code \([\w.]*getattr\): refused; save the state dict only"):
        read_weights(saved(tmp_path / "a.pt", {"a": Explosive(mark)}))
    assert not mark.exists()
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": Explosive(mark)}))
    with pytest.raises(ArtifactError, match=r"contains code \(or objects that are not tensors\): refused"):
        read_weights(tmp_path / "b.pt")
    assert not mark.exists()
    with pytest.raises(ArtifactError, match=r"contains code \(torch\.nn\.modules\.\S+\): refused; save the state dict"):
        read_weights(saved(tmp_path / "c.pt", net()))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_truncated_files_are_refused(tmp_path: Path, name: str, keep: float) -> None:
    """Wherever the file was cut, the message says that it was."""
    path, state = tmp_path / name, net().state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ArtifactError, match=r"truncated, or not a .*get the file again"):
        read_weights(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_missing_files_and_folders_are_refused(tmp_path: Path, name: str) -> None:
    """A path with nothing readable behind it is named."""
    with pytest.raises(ArtifactError, match="there is no such file"):
        read_weights(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        read_weights(tmp_path / name)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    """The suffix tells the format."""
    with pytest.raises(ArtifactError, match=r"expected a file ending in .safetensors, .pt or .pth"):
        read_weights(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "expected a state dict .* found .*Tensor"),
        ({"epoch": 3, "best": 0.5}, "found a dict with 'epoch', 'best'"),
        ({}, "expected a state dict"),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: object, message: str) -> None:
    """What was found instead of a state dict is said."""
    with pytest.raises(ArtifactError, match=message):
        read_weights(saved(tmp_path / "a.pt", content))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """The first missing key, unexpected key and shape difference are named, and nothing is loaded."""
    state = net().state_dict()
    state["0.weight"] = torch.zeros(4, 1, 5, 5)
    state["9.weight"] = state.pop("3.bias")
    other = net()
    before = state_sha256(other.state_dict())
    message = (
        r"a\.pt do not fit toy: first missing key '3\.bias' \(of 1\), first unexpected key '9\.weight' \(of 1\), "
        r"first shape difference '0\.weight': \(4, 1, 5, 5\) in the file, \(4, 1, 3, 3\) in the network"
    )
    with pytest.raises(ArtifactError, match=message):
        read_weights(saved(tmp_path / "a.pt", state)).load_into(other, "toy")
    assert before == state_sha256(other.state_dict())


def test_state_hash_depends_on_names_and_bytes_only() -> None:
    """The order of insertion does not matter; a name or one bit does; the hash is the one worked out by hand."""
    one, two = torch.tensor([1.0, 2.0]), torch.tensor(3)
    expected = hashlib.sha256(b"a" + one.numpy().tobytes() + b"b" + two.numpy().tobytes()).hexdigest()
    assert expected == state_sha256({"b": two, "a": one})
    assert expected != state_sha256({"c": two, "a": one})
    assert expected != state_sha256({"b": two, "a": one.nextafter(torch.tensor(9.0))})
    assert hashlib.sha256().hexdigest() == state_sha256({})
    assert state_sha256({"a": one.bfloat16()}) != expected
