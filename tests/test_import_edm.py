from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import json
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustgen.errors import ArtifactError, RobustgenError, SpecError
from robustgen.generator.card import GeneratorCard
from robustgen.generator.import_edm import import_edm, read_edm
from robustgen.generator.network_denoiser import EdmDenoiser
from robustgen.generator.song_unet import Convolution, ResidualBlock, SongUnet

IMAGES: dict[str, Any] = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 4, "augment_dim": 9}
SIZE: dict[str, Any] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
SETTINGS = IMAGES | SIZE | {"dropout": 0.13}
NCSNPP: dict[str, Any] = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
NCSNPP["resample_filter"] = [1, 3, 3, 1]
CLASSES = {nn.Linear: "Linear", nn.GroupNorm: "GroupNorm", Convolution: "Conv2d", ResidualBlock: "UNetBlock"}


class Persistent:
    """Pickles as objects of EDM's persistent classes do: source code, name and attributes for one function."""

    function: Any = None  # `torch_utils.persistence._reconstruct_persistent_obj`, while that is there
    source = "raise SystemExit('source code of the file was run')"

    def __init__(self, name: str, **state: Any) -> None:
        self.name, self.state = name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta: dict[str, Any] = {"type": "class", "version": 6, "module_src": Persistent.source, "class_name": self.name}
        meta["state"] = self.state
        return Persistent.function, (meta,), None


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.fixture(autouse=True)
def persistence() -> Iterator[None]:
    """EDM's module is there while a test writes files; nobody could import it from disk."""
    package, module = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")

    def rebuild(meta: dict[str, Any]) -> None:
        exec(meta["module_src"], {})

    rebuild.__module__, rebuild.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    rebuild.__name__ = rebuild.__qualname__
    module._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]
    package.persistence = module  # type: ignore[attr-defined]
    sys.modules |= {package.__name__: package, module.__name__: module}
    Persistent.function = rebuild
    yield
    forget()


def forget() -> None:
    """Take EDM's module away, as it is on the computer of somebody who imports a file."""
    sys.modules.pop("torch_utils.persistence", None)
    sys.modules.pop("torch_utils", None)


def state_of(module: nn.Module, **attributes: Any) -> dict[str, Any]:
    """The attributes of a module as torch keeps them, with what is inside it made persistent too."""
    buffers = {**({"resample_filter": None} if isinstance(module, Convolution) else {}), **module._buffers}
    return {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict((key, persistent(inner)) for key, inner in module._modules.items() if inner),
        "_init_args": (),
        "_init_kwargs": {},
        **attributes,
    }


def persistent(module: nn.Module) -> Any:
    """A module of `SongUnet` as EDM would hold it: its own classes persistent, containers torch's."""
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules = {key: persistent(inner) for key, inner in module.items()}
        return container
    attributes: dict[str, Any] = {}
    if isinstance(module, nn.GroupNorm):
        attributes = {"num_groups": module.num_groups, "eps": 1e-6}
    elif isinstance(module, Convolution):
        attributes = {"fused_resample": module.filter_last}
    elif isinstance(module, ResidualBlock):
        attributes = {"skip_scale": np.sqrt(0.5), "adaptive_scale": False, "num_heads": int(module.attention)}
    return Persistent(CLASSES.get(type(module), type(module).__name__), **state_of(module, **attributes))


def make_net(**changes: Any) -> SongUnet:
    """A random network, every parameter and buffer of frequencies different from its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SongUnet(**{**SETTINGS, **changes})
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        if changes.get("embedding_type") == "fourier":
            net.map_noise.freqs = 16 * torch.randn(16)
    return net.eval().requires_grad_(False)


def make_content(net: SongUnet, **kwargs: Any) -> dict[str, Any]:
    """What EDM's training writes, as a tree that pickles into a file of its format."""
    given = {**SETTINGS, "label_dropout": 0, **kwargs}
    model = Persistent("SongUNet", **state_of(net, label_dropout=0, _init_kwargs=given))
    state = state_of(nn.Module(), sigma_min=0, sigma_max=float("inf"), sigma_data=0.5, use_fp16=False)
    root = Persistent("EDMPrecond", **{**state, "_modules": OrderedDict(model=model)})
    loss = Persistent("EDMLoss", P_mean=-1.1, P_std=1.3, sigma_data=0.5)
    return {"ema": root, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "cifar10.zip"}}


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    """Pickle, then forget EDM's module."""
    path.write_bytes(pickle.dumps(content, protocol))
    forget()
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("changes", [{}, {"label_dim": 0, "augment_dim": 0}, NCSNPP], ids=["ddpmpp", "plain", "ncsnpp"])
def test_round_trip(tmp_path: Path, changes: dict[str, Any], protocol: int) -> None:
    """Every tensor comes back, and the card's generator computes what the network in the file does."""
    net = make_net(**changes)
    path = write(tmp_path / "edm-toy.pkl", make_content(net, **changes), protocol)
    card_path = import_edm(path, tmp_path / "out")
    assert tmp_path / "out" / "edm-toy.json" == card_path
    stored = load_file(card_path.with_suffix(".safetensors"))
    state = net.state_dict()
    assert sorted(state) == sorted(stored)
    assert all(torch.equal(state[key], stored[key]) for key in state)
    card = GeneratorCard.load(card_path)
    classes = changes.get("label_dim", 4)
    direct = EdmDenoiser(net, (3, 8, 8), classes, sigma_data=0.5, mean=(0.0,) * 3)
    imported = card.load_denoiser(card_path.parent, torch.device("cpu"))
    x, sigma = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.01, 0.7, 60.0])
    label = torch.tensor([3, -1, 0]) if classes else None
    torch.testing.assert_close(direct(x, sigma, label), imported(x, sigma, label), rtol=0, atol=0)


def test_the_card_says_what_the_file_says(tmp_path: Path) -> None:
    """Loss, size and origin are those of the file; the range of sigma is that of EDM's samplers, the mean 0."""
    path = write(tmp_path / "edm-toy.pkl", make_content(make_net()))
    card = json.loads(import_edm(path, tmp_path).read_text())
    assert card["objective"] == {
        "sigma_data": 0.5,
        "mean": [0.0, 0.0, 0.0],
        "p_mean": -1.1,
        "p_std": 1.3,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "noise_scale": 1.0,
    }
    assert card["network"]["kind"] == "song-unet"
    assert ([3, 8, 8], 4, True) == (card["shape"], card["classes"], card["augmented"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card["source"]
    assert hashlib.sha256((tmp_path / card["weights"]).read_bytes()).hexdigest() == card["sha256"]
    assert str(tmp_path) not in json.dumps(card)


def test_source_code_in_the_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDM's own reader would run it, as the control shows; the import does not."""
    mark = tmp_path / "was-run"
    monkeypatch.setattr(Persistent, "source", f"open({str(mark)!r}, 'w').close()")
    content = pickle.dumps(make_content(make_net()))
    pickle.loads(content)  # noqa: S301 -- the control
    assert mark.exists()
    mark.unlink()
    path = tmp_path / "edm-toy.pkl"
    path.write_bytes(content)
    import_edm(path, tmp_path)
    assert not mark.exists()


def storage_of(payload: bytes) -> Call:
    """A tensor's numbers, read from bytes that are a pickle themselves."""
    return Call(torch.storage._load_from_bytes, payload)


def zipped(value: Any) -> bytes:
    """A file of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda mark: Call(os.system, f"touch '{mark}'"), r"\((posix|nt)\.system\)"),
        (lambda mark: Call(builtins.eval, f"open({mark!r}, 'w').close()"), r"\(builtins\.eval\)"),
        (
            lambda mark: Call(open, mark, "w"),
            r"\(.*open\)",
        ),
        (lambda mark: storage_of(pickle.dumps(Call(os.system, f"touch '{mark}'"), 2)), r"\((posix|nt)\.system\)"),
        (lambda mark: storage_of(pickle.dumps(Call(os.system, f"touch '{mark}'"), 4)), "tensor in it cannot be read"),
        (lambda mark: storage_of(zipped(Call(os.system, f"touch '{mark}'"))), r"\((posix|nt)\.system\)"),
    ],
    ids=["os.system", "eval", "open", "nested pickle 2", "nested pickle 4", "nested zip"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hostile_pickle_is_refused_unrun(tmp_path: Path, make: Callable[[str], Call], named: str) -> None:
    """A pickle that makes a file when it is read by pickle does not make it here, and what it names is said."""
    mark = tmp_path / "was-run"
    content = make_content(make_net())
    content["ema"].state["_parameters"]["weight"] = make(str(mark))
    content["ema"].state["_parameters"].move_to_end("weight", last=False)
    hostile = pickle.dumps({"hostile": make(str(mark))})
    with contextlib.suppress(pickle.UnpicklingError, RuntimeError, TypeError):
        pickle.loads(hostile)  # noqa: S301 -- the control: it does run
    assert mark.exists()
    mark.unlink()
    path = write(tmp_path / "edm-toy.pkl", content)
    with pytest.raises(ArtifactError, match=named):
        import_edm(path, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", r"collections\.OrderedDict\.fromkeys"),
        (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", r"builtins\.getattr"),
        (b"\x80\x02c__builtin__\neval\n.", r"__builtin__\.eval"),
        (b"\x80\x02ctorch_utils.persistence\n_src_to_module\n.", r"torch_utils\.persistence\._src_to_module"),
        (b"\x80\x04\x8c\x01xQ.", "truncated or damaged"),
        # sets attributes of a function that is allowed: no attribute can be set on what the reader hands out
        (
            b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_parameter\x93N}\x8c\x08__self__K\x01s\x86b.",
            "truncated or damaged",
        ),
        (b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93N}\x8c\x03newK\x01s\x86b.", "truncated or damaged"),
        (
            b"\x80\x04\x8c\x1atorch.nn.modules.container\x8c\x0aModuleDict\x93N}\x8c\x03newK\x01s\x86b.",
            "truncated or damaged",
        ),
    ],
)
def test_opcodes_find_nothing_to_misuse(tmp_path: Path, content: bytes, message: str) -> None:
    """Neighbours of what is allowed are refused by name, and what is allowed cannot be changed."""
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_edm(path)


@pytest.mark.parametrize(
    ("size", "stride", "offset", "message"),
    [((10**9,), (0,), 0, "has only 6 numbers"), ((2, 3), (3, 1), 5, "damaged"), ((2,), (-1,), 3, "damaged")],
)
def test_tensor_stays_in_its_storage(tmp_path: Path, size: Any, stride: Any, offset: int, message: str) -> None:
    """A view larger than its numbers, beyond their end or backwards is refused."""
    storage = torch.arange(6.0).untyped_storage()
    buffer = io.BytesIO()
    torch.save(torch.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True), buffer)
    call = Call(torch._utils._rebuild_tensor_v2, storage_of(buffer.getvalue()), offset, size, stride, False, {})
    path = write(tmp_path / "edm-toy.pkl", {"ema": call})
    with pytest.raises(ArtifactError, match=message):
        read_edm(path)


OTHER_FILES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(pickle.dumps(make_content(make_net()))[:20_000]),
    "text": lambda path: path.write_text("no pickle"),
    "empty": lambda path: path.write_bytes(b""),
    "zip": lambda path: torch.save({"weight": torch.zeros(2)}, path),
    "legacy": lambda path: torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: save_file({"weight": torch.zeros(2)}, path),
    "dict": lambda path: path.write_bytes(pickle.dumps({"net": 1, "optimizer": 2})),
    "missing": lambda path: None,
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"truncated or damaged \(.*truncated.*\); get the file again\.$"),
        ("text", r"not a pickle; expected a pickle such as edm-cifar10-32x32-cond-vp\.pkl\.$"),
        ("empty", "not a pickle"),
        ("zip", "a zip file, as torch.save writes; expected a pickle"),
        ("legacy", "expected a dict with a network under 'ema', found <class 'int'>"),
        ("safetensors", "a safetensors file, which needs no import"),
        ("dict", "expected a dict with a network under 'ema', found a dict with 'net', 'optimizer'"),
        ("missing", "there is no such file"),
    ],
)
def test_other_files_are_told_in_a_sentence(tmp_path: Path, kind: str, message: str) -> None:
    """One line that names the file, what it is and what was expected."""
    path = tmp_path / "edm-toy.pkl"
    OTHER_FILES[kind](path)
    with pytest.raises(ArtifactError, match=message) as caught:
        import_edm(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def block_of(content: dict[str, Any]) -> dict[str, Any]:
    """The attributes of one residual block."""
    encoder = content["ema"].state["_modules"]["model"].state["_modules"]["enc"]
    state: dict[str, Any] = encoder._modules["8x8_block0"].state
    return state


def model_of(content: dict[str, Any]) -> Persistent:
    """The network inside the preconditioning."""
    model: Persistent = content["ema"].state["_modules"]["model"]
    return model


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: vars(c["ema"]).update(name="VPPrecond"), ArtifactError, "by VPPrecond, expected EDMPrecond"),
        (
            lambda c: vars(model_of(c)).update(name="DhariwalUNet"),
            ArtifactError,
            r"DhariwalUNet \(ImageNet-64\).*take a",
        ),
        (lambda c: vars(model_of(c)).update(name="MyUNet"), ArtifactError, "expected a SongUNet .*, found MyUNet"),
        (lambda c: block_of(c).update(skip_scale=1.0), ArtifactError, "'enc.8x8_block0' .* has skip_scale = 1.0"),
        (lambda c: block_of(c).update(num_heads=2), ArtifactError, "has num_heads = 2, .* 0 or 1"),
        (lambda c: block_of(c)["_modules"]["norm0"].state.update(eps=1e-5), ArtifactError, "norm0.* has eps = 1e-05"),
        (lambda c: block_of(c)["_modules"].pop("conv1"), ArtifactError, "missing key 'enc.8x8_block0.conv1.weight'"),
        (
            lambda c: model_of(c).state["_init_kwargs"].update(encoder_type="skip"),
            SpecError,
            "encoder_type must be one of",
        ),
        (lambda c: model_of(c).state["_init_kwargs"].update(depth=3), SpecError, "unknown field 'network.depth'"),
        (
            lambda c: model_of(c).state["_init_kwargs"].update(num_blocks=2),
            ArtifactError,
            "do not fit the SongUNet that it",
        ),
        (lambda c: model_of(c).state.update(_init_args=(8,)), ArtifactError, "arguments without names"),
        (lambda c: c["ema"].state.update(sigma_data="big"), ArtifactError, "sigma_data is no number"),
        (lambda c: c["ema"].state.pop("_modules"), ArtifactError, "'_modules' of a module is missing"),
    ],
)
def test_other_networks_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], error: type[RobustgenError], message: str
) -> None:
    """A network that robustgen would compute otherwise, or cannot build, is named and nothing is written."""
    content = make_content(make_net())
    if "sigma_data" in message:
        content["loss_fn"] = None
    change(content)
    path = write(tmp_path / "edm-toy.pkl", content)
    with pytest.raises(error, match=message):
        import_edm(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_modules_without_end_are_refused(tmp_path: Path) -> None:
    """A module inside itself ends in a sentence."""
    content = make_content(make_net())
    container = nn.ModuleDict()
    container._modules = {"again": container}
    model_of(content).state["_modules"]["enc"] = container
    with pytest.raises(ArtifactError, match=r"modules inside modules without end at 'enc\.again\.again"):
        import_edm(write(tmp_path / "edm-toy.pkl", content), tmp_path / "out")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the place of the folder is told in a sentence."""
    path = write(tmp_path / "edm-toy.pkl", make_content(make_net()))
    with pytest.raises(RobustgenError, match=r"edm-toy\.pkl cannot be written"):
        import_edm(path, path)
