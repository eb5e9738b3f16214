"""Weights in the format of NVIDIA's EDM, read without running anything that is in the file.

Such a file is a pickle {'ema': EDMPrecond, ...}, whose objects carry the source code of their classes; the reader that
comes with it executes that code. Here a pickle may name a short list of things only. Each stands for a function of
this module that keeps data and cannot do anything else; the source code is dropped unread.

Source: Karras et al. 2022, arXiv:2206.00364 (the networks); NVlabs/edm, `torch_utils/persistence.py` (the format).
Unverified: read from the published code and tested with files made by that description, not with a published file.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from robustgen import durable
from robustgen.errors import ArtifactError, SpecError
from robustgen.fields import read_section
from robustgen.generator.card import GeneratorCard
from robustgen.generator.objective import EdmObjective
from robustgen.generator.song_unet import KIND, SongUnet, SongUnetSettings
from robustgen.weights import Weights

__all__ = ["Record", "import_edm", "read_edm"]

_LICENCE = "CC BY-NC-SA 4.0 (non-commercial) where NVIDIA published the file with EDM; otherwise its author's"
_NUMBERS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "u1": "<B", "b1": "<?"}
_CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
_DERIVED = ("img_resolution", "in_channels", "out_channels", "label_dim")  # a card has them outside `network`
_LEVELS = 8  # of modules inside modules; EDM's files have 5


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One object of the file: the name of its class and its attributes, nothing of its code."""

    name: str
    state: Mapping[str, Any]


def import_edm(path: Path, out: Path) -> Path:
    """Convert a file of EDM weights to a card with a safetensors file beside it.

    Args:
        path: such as edm-cifar10-32x32-cond-vp.pkl.
        out: folder to write to, made where there is none; both files have the name of `path`.

    Returns:
        The card's file.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind, names code, or holds another kind of network.
        SpecError: its network has settings that are not implemented.
    """
    content = _read(path)
    loaded = _load(path, content)
    root, model = _find_network(path, loaded)
    settings = _settings(path, model)
    tensors = {key: tensor.detach().float().clone().contiguous() for key, tensor in _tensors(path, model, "")}
    with torch.device("meta"):  # the initial values would be thrown away
        network = SongUnet(**asdict(settings))
    weights = Weights(path=path, sha256=hashlib.sha256(content).hexdigest(), tensors=tensors)
    weights.load_into(network.to_empty(device="cpu"), "the SongUNet that it describes")
    stored = save_safetensors(tensors)
    card = GeneratorCard(
        name=path.stem,
        description=f"Imported from {path.name}, weights in NVIDIA's EDM format.",
        kind="edm",
        objective=_objective(path, root, loaded.get("loss_fn"), settings.in_channels),
        network={"kind": KIND} | {key: value for key, value in asdict(settings).items() if key not in _DERIVED},
        shape=(settings.in_channels, settings.img_resolution, settings.img_resolution),
        classes=settings.label_dim,
        augmented=settings.augment_dim > 0,
        weights=f"{path.stem}.safetensors",
        sha256=hashlib.sha256(stored).hexdigest(),
        licence=_LICENCE,
        source=f"robustgen generator import-edm {path.name} (sha256 of that file: {weights.sha256})",
    )
    card_path = out / f"{path.stem}.json"
    with durable.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        durable.replace(out / card.weights, stored)
        card.save(card_path)
    return card_path


def read_edm(path: Path) -> dict[str, Any]:
    """What a file of EDM weights holds: `Record`s, tensors and plain values; no code of it is run.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind, or names code.
    """
    return _load(path, _read(path))


def _read(path: Path) -> bytes:
    """The bytes of a file that at least begins as a pickle does."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"EDM weights {path}: there is no such file.") from None
    except OSError as error:
        raise ArtifactError(f"EDM weights {path} cannot be read: {error.strerror}.") from error
    wanted = "expected a pickle such as edm-cifar10-32x32-cond-vp.pkl"
    if content.startswith(b"PK"):
        raise ArtifactError(f"EDM weights {path}: a zip file, as torch.save writes; {wanted}.")
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        raise ArtifactError(f"EDM weights {path}: a safetensors file, which needs no import; {wanted}.")
    if not content.startswith(b"\x80"):
        raise ArtifactError(f"EDM weights {path}: not a pickle; {wanted}.")
    return content


def _load(path: Path, content: bytes) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its older ways to store tensors
            loaded = _Reader(path, content).load()
    except ArtifactError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle makes of the unpickler
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ArtifactError(f"EDM weights {path}: truncated or damaged ({reason}); get the file again.") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("ema"), Record):
        kind = f"a dict with {', '.join(map(repr, list(loaded)[:5]))}" if isinstance(loaded, dict) else type(loaded)
        raise ArtifactError(f"EDM weights {path}: expected a dict with a network under 'ema', found {kind}.")
    return loaded


class _Reader(pickle.Unpickler):
    """An unpickler that finds nothing but what is listed here.

    All it hands out are bound methods, whose attributes a pickle cannot set, and built-in classes of plain data.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._path = path
        self._known: dict[tuple[str, str], Any] = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): self._record,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.storage", "_load_from_bytes"): self._storage,
            ("numpy", "dtype"): self._dtype,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy._core.multiarray", "scalar"): self._scalar,
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("dnnlib.util", "EasyDict"): dict,
        }
        self._known |= {("torch.nn.modules.container", name): SimpleNamespace for name in _CONTAINERS}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = self._known.get((module_name, global_name))
        if found is None:
            raise self._refuse(f"{module_name}.{global_name}")
        return found

    def _refuse(self, name: str) -> ArtifactError:
        return ArtifactError(
            f"EDM weights {self._path}: contains code ({name}), which weights do not need: refused, and nothing of "
            "the file was run."
        )

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"EDM weights {self._path}: {what}; get the file again.")

    def _record(self, meta: Any) -> Record:
        """For the function that executes the source code in `meta`."""
        known = isinstance(meta, dict) and meta.get("type") == "class" and isinstance(meta.get("state"), dict)
        if not known or not isinstance(meta.get("class_name"), str):
            raise self._damaged("an object in it is not described as EDM describes objects")
        return Record(meta["class_name"], meta["state"])

    def _storage(self, content: Any) -> torch.TypedStorage:
        """For `_load_from_bytes`, which would unpickle these bytes: torch's own restricted unpickler reads them."""
        try:
            storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch promises no set of types
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if code is not None:
                raise self._refuse(code[1]) from error
            raise self._damaged(f"a tensor in it cannot be read ({type(error).__name__})") from error
        if not isinstance(storage, torch.TypedStorage):
            raise self._damaged(f"expected the numbers of a tensor, found {type(storage).__name__}")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """A view of a storage, never beyond its end and never larger than it."""
        if not isinstance(storage, torch.TypedStorage):
            raise self._damaged("a tensor in it has no numbers")
        numbers = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        if math.prod(size) > numbers.numel():
            raise self._damaged(f"a tensor of shape {tuple(size)} has only {numbers.numel()} numbers")
        return numbers.as_strided(size, stride, offset)

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _dtype(self, code: Any, *_: Any) -> _Dtype:
        if code not in _NUMBERS:
            raise self._damaged(f"a NumPy number of kind {code!r} is not expected in it")
        return _Dtype(code)

    def _scalar(self, dtype: Any, content: Any) -> Any:
        if not isinstance(dtype, _Dtype):
            raise self._damaged("a NumPy number in it has no kind")
        return struct.unpack(_NUMBERS[dtype.code], content)[0]


class _Dtype:
    """The kind of a NumPy number, such as "f8"; little-endian."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """For (version, byte order, ...), with which NumPy completes a kind."""
        if state[1] not in ("<", "|"):
            raise ValueError("big-endian numbers")


def _find_network(path: Path, loaded: Mapping[str, Any]) -> tuple[Record, Record]:
    """The preconditioned network of a file, and the network inside it."""
    root: Record = loaded["ema"]
    if root.name != "EDMPrecond":
        raise ArtifactError(
            f"EDM weights {path}: preconditioned by {root.name}, expected EDMPrecond; take one of the files that "
            "begin with edm-, not one with baseline- in its name."
        )
    model = _part(path, root.state, "_modules").get("model")
    name = model.name if isinstance(model, Record) else type(model).__name__
    if name == "DhariwalUNet":
        raise ArtifactError(
            f"EDM weights {path}: holds a DhariwalUNet (ImageNet-64), a network that robustgen has not; take a file "
            "with a SongUNet (CIFAR-10, FFHQ, AFHQv2), or sample with NVIDIA's code and judge the images."
        )
    if not isinstance(model, Record) or name != "SongUNet":
        raise ArtifactError(f"EDM weights {path}: expected a SongUNet inside EDMPrecond, found {name}.")
    return root, model


def _settings(path: Path, model: Record) -> SongUnetSettings:
    """The arguments that a network was made with."""
    given = dict(_part(path, model.state, "_init_kwargs"))
    if model.state.get("_init_args"):
        raise ArtifactError(f"EDM weights {path}: its network was made with arguments without names; cannot tell them.")
    given.pop("label_dropout", None)  # of training only
    try:
        return read_section(SongUnetSettings, "network", given)
    except SpecError as error:
        raise SpecError(f"EDM weights {path}: {error}") from error


def _objective(path: Path, root: Record, loss: Any, channels: int) -> dict[str, Any]:
    """The arguments of `EdmObjective`: the file's, and a mean of 0, as EDM does not centre its data."""
    state = {**root.state, **(loss.state if isinstance(loss, Record) else {})}
    names = {"sigma_data": "sigma_data", "p_mean": "P_mean", "p_std": "P_std"}
    found = {ours: state[theirs] for ours, theirs in names.items() if theirs in state}
    limits = {"sigma_min": root.state.get("sigma_min", 0), "sigma_max": root.state.get("sigma_max", math.inf)}
    for key, value in (found | limits).items():
        if not isinstance(value, int | float) or math.isnan(value) or (key == "sigma_data" and not value > 0):
            raise ArtifactError(f"EDM weights {path}: {key} is no number that can be used, got {value!r}.")
    if "sigma_data" not in found:
        raise ArtifactError(f"EDM weights {path}: sigma_data is missing; get the file again.")
    usual = EdmObjective(sigma_data=1.0, mean=(0.0,))  # EDM's networks take any sigma; samplers stay in this range
    found["sigma_min"] = max(usual.sigma_min, limits["sigma_min"])
    found["sigma_max"] = min(usual.sigma_max, limits["sigma_max"])
    return {**found, "mean": [0.0] * channels, "noise_scale": 1.0}


def _tensors(path: Path, module: Record | SimpleNamespace, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module and of those inside it, by the names of a state dict."""
    if prefix.count(".") > _LEVELS:
        raise ArtifactError(f"EDM weights {path}: modules inside modules without end at '{prefix[:60]}'.")
    state = module.state if isinstance(module, Record) else vars(module)
    if isinstance(module, Record):
        _check_block(path, module, prefix.rstrip("."))
    passing = state.get("_non_persistent_buffers_set") or ()
    for key, tensor in {**_part(path, state, "_parameters"), **_part(path, state, "_buffers")}.items():
        if tensor is None or key in passing:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ArtifactError(f"EDM weights {path}: expected a tensor of floats at '{prefix}{key}'.")
        yield f"{prefix}{key}", tensor
    for key, inner in _part(path, state, "_modules").items():
        if isinstance(inner, Record | SimpleNamespace):
            yield from _tensors(path, inner, f"{prefix}{key}.")


def _check_block(path: Path, module: Record, where: str) -> None:
    """Refuse weights of a network that computes otherwise than `SongUnet`, though its parameters have the same names.

    What the file says of its layers is compared with what is fixed here; an attribute that it lacks is not.
    """
    state = module.state
    fixed: dict[str, tuple[float, ...]] = {}
    if module.name == "UNetBlock":
        fixed = {"adaptive_scale": (False,), "skip_scale": (math.sqrt(0.5),), "num_heads": (0, 1)}
    elif module.name == "PositionalEmbedding":
        fixed = {"max_positions": (10000,), "endpoint": (True,)}
    elif module.name == "GroupNorm":
        weight = _part(path, state, "_parameters").get("weight")
        fixed = {"eps": (1e-6,)}
        if isinstance(weight, Tensor):
            fixed["num_groups"] = (min(32, weight.numel() // 4),)
    elif module.name == "Conv2d":
        fixed = {"fused_resample": (where.endswith("_aux_residual"),)}
    for key, wanted in fixed.items():
        value = state.get(key, wanted[0])
        if not isinstance(value, int | float) or not any(math.isclose(value, one) for one in wanted):
            raise ArtifactError(
                f"EDM weights {path}: '{where}' ({module.name}) has {key} = {value!r}, and robustgen's network has "
                f"{' or '.join(map(repr, wanted))}: it would compute something else."
            )


def _part(path: Path, state: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = state.get(key)
    if not isinstance(part, Mapping) or not all(isinstance(name, str) for name in part):
        raise ArtifactError(f"EDM weights {path}: '{key}' of a module is missing; get the file again.")
    return part
