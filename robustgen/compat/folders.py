"""Where the runs behind the shims lie, and on which device they are made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from robustgen.errors import SpecError

__all__ = ["as_module", "device_name", "run_folder"]


@contextmanager
def run_folder(state_path: str | Path | None, argument: str) -> Iterator[Path]:
    """The folder that was named, which is kept and gone on with; else one that is removed afterwards.

    Args:
        state_path: as the script gives it.
        argument: its name, for messages.

    Raises:
        SpecError: it is a file, as the reference writes one.
    """
    if state_path is not None:
        folder = Path(state_path)
        if folder.exists() and not folder.is_dir():
            raise SpecError(
                f"{argument}: {folder} is a file, and robustgen keeps a run in a folder; name another place. "
                "A state file of the reference cannot be gone on with."
            )
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="robustgen-") as folder_name:
        yield Path(folder_name) / "run"


def device_name(device: str | torch.device) -> str:
    """A device as `robustgen.evaluate` names it.

    Raises:
        SpecError: no device, or one of several GPUs that is not the current one.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SpecError(f"device must be such as 'cpu', 'cuda' or torch.device('cuda'), got {device!r}.") from error
    if chosen.type == "cuda" and chosen.index and chosen.index != torch.cuda.current_device():
        raise SpecError(
            f"device {chosen}: robustgen uses the current GPU; set CUDA_VISIBLE_DEVICES={chosen.index} and write "
            "device='cuda'."
        )
    return chosen.type


class _Called(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float32 in [0, 1] to logits (B, K)."""
        return self.function(x)  # type: ignore[operator, no-any-return]


def as_module(model: object) -> nn.Module:
    """The module itself, or a module around a function (B, C, H, W) -> (B, K).

    Raises:
        SpecError: neither.
    """
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise SpecError(
            f"model must be a torch.nn.Module or a function of images (B, C, H, W), got a {type(model).__name__}."
        )
    return _Called(model)
