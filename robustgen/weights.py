"""Reading files of weights: never by running what is in them."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from robustgen.errors import ArtifactError

__all__ = ["Weights", "read_weights", "state_sha256"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one file.

    Args:
        path: the file.
        sha256: of its bytes.
        tensors: names to tensors, on the CPU.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]

    def load_into(self, network: nn.Module, architecture: str) -> None:
        """Copy the tensors into a network of exactly their names and shapes.

        Raises:
            ArtifactError: another architecture; the first differing keys are named.
        """
        wanted = network.state_dict()
        # torch fills in the counters of batch norm, which files from before 2018 do not have
        missing = [key for key in wanted if key not in self.tensors and not key.endswith("num_batches_tracked")]
        unexpected = [key for key in self.tensors if key not in wanted]
        shapes = [key for key in wanted if key in self.tensors and wanted[key].shape != self.tensors[key].shape]
        differences = []
        if missing:
            differences.append(f"first missing key '{missing[0]}' (of {len(missing)})")
        if unexpected:
            differences.append(f"first unexpected key '{unexpected[0]}' (of {len(unexpected)})")
        if shapes:
            file, net = tuple(self.tensors[shapes[0]].shape), tuple(wanted[shapes[0]].shape)
            differences.append(f"first shape difference '{shapes[0]}': {file} in the file, {net} in the network")
        if differences:
            raise ArtifactError(f"weights {self.path} do not fit {architecture}: {', '.join(differences)}.")
        network.load_state_dict(dict(self.tensors))


def read_weights(path: Path) -> Weights:
    """Read a `.safetensors` file, or a `.pt` / `.pth` file of tensors only.

    A state dict inside a larger checkpoint is taken out, and prefixes such as `module.` are removed.

    Raises:
        ArtifactError: the file is missing, truncated, of another kind, or a pickle with code.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ArtifactError(f"weights {path}: expected a file ending in .safetensors, .pt or .pth.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"weights {path}: there is no such file.") from None
    except OSError as error:
        raise ArtifactError(f"weights {path} cannot be read: {error.strerror}.") from error
    loaded = _parse_safetensors(path, content) if path.suffix == ".safetensors" else _parse_torch(path, content)
    return Weights(path=path, sha256=hashlib.sha256(content).hexdigest(), tensors=_state_dict(path, loaded))


def state_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256 over names and bytes of the tensors of a state dict, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        if isinstance(state[key], Tensor):
            digest.update(key.encode())
            digest.update(state[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _parse_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise ArtifactError(
            f"weights {path}: truncated, or not a safetensors file ({error}); get the file again."
        ) from error


def _parse_torch(path: Path, content: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is refused below
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch promises no set of types: UnpicklingError, RuntimeError, EOFError, KeyError ...
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ArtifactError(
                f"weights {path}: contains code ({code[1] if code else 'or objects that are not tensors'}): refused; "
                "save the state dict only, or convert it to safetensors."
            ) from error
        raise ArtifactError(
            f"weights {path}: truncated, or not a file of torch.save "
            f"({type(error).__name__}: {_sentence(str(error))}); get the file again."
        ) from error


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, under the names that the network itself gives them."""
    while isinstance(loaded, dict) and not _is_state(loaded):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not _is_state(loaded):
        found = f"a dict with {', '.join(map(repr, list(loaded)[:5]))}" if isinstance(loaded, dict) else type(loaded)
        raise ArtifactError(f"weights {path}: expected a state dict (names to tensors), found {found}.")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in loaded):
            loaded = {key.removeprefix(prefix): value for key, value in loaded.items()}
    return dict(loaded)


def _is_state(loaded: dict[Any, Any]) -> bool:
    return bool(loaded) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items())


def _sentence(text: str) -> str:
    return text.strip().split(". ")[0].split("\n")[0].rstrip(".") or "no reason given"
