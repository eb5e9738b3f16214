"""Generators by name: bundled ones, cards, and folders of diffusers' pipelines."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.generator.card import GeneratorCard, bundled_generators
from robustgen.generator.denoiser import Denoiser
from robustgen.generator.network import low_precision_copy, prepare_for
from robustgen.generator.network_denoiser import DdpmDenoiser, EdmDenoiser
from robustgen.generator.views import VpSchedule
from robustgen.precision import has_bfloat16
from robustgen.usercode import first_line
from robustgen.weights import read_weights, state_sha256

__all__ = ["DiffusersUnet", "Generator", "load_generator", "with_precision"]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A denoiser and where it comes from.

    Attributes:
        name: as typed.
        denoiser: eval mode, parameters frozen.
        sha256: of its weights.
        card: None for a diffusers folder.
        precision: in which the network computes, "float32" or "bfloat16".
    """

    name: str
    denoiser: Denoiser
    sha256: str
    card: GeneratorCard | None
    precision: str


def load_generator(name: str, *, device: torch.device | None = None, precision: str = "auto") -> Generator:
    """A generator by name.

    Args:
        name: a bundled one, a card ending in .json, or `diffusers:PATH` with the folder of a DDPM pipeline.
        device: where it shall be; None for the CPU.
        precision: "float32", "bfloat16", or "auto" for bfloat16 where the processor multiplies it.

    Raises:
        SpecError: nothing of that name, or an impossible precision.
        ArtifactError: a file is missing, damaged, or not what it should be.
    """
    device = device or torch.device("cpu")
    if precision not in ("auto", "float32", "bfloat16"):
        raise SpecError(f"--precision must be auto, float32 or bfloat16, got '{precision}'.")
    chosen = ("bfloat16" if has_bfloat16(device) else "float32") if precision == "auto" else precision
    known = bundled_generators()
    card: GeneratorCard | None = None
    denoiser: Denoiser
    if name.startswith("diffusers:"):
        denoiser = _from_diffusers(Path(name.removeprefix("diffusers:")).expanduser())
        digest = state_sha256(denoiser.state_dict())
        prepare_for(denoiser, device)
    elif name in known or name.endswith(".json"):
        path = known.get(name, Path(name).expanduser())
        card = GeneratorCard.load(path)
        denoiser = card.load_denoiser(path.parent, device)
        digest = read_weights(path.parent / card.weights).sha256
    else:
        raise unknown_name("generator", name, known, hint="Or give a card ending in .json, or diffusers:PATH.")
    return Generator(name=name, denoiser=with_precision(denoiser, chosen), sha256=digest, card=card, precision=chosen)


def with_precision(denoiser: Denoiser, precision: str) -> Denoiser:
    """The denoiser itself for "float32", or a copy whose network computes in "bfloat16"; images stay in their dtype."""
    if precision != "bfloat16" or not isinstance(denoiser, EdmDenoiser | DdpmDenoiser):
        return denoiser
    other = copy.deepcopy(denoiser)
    other.network = low_precision_copy(denoiser.network)
    return other


class DiffusersUnet(nn.Module):
    """A `UNet2DModel` behind the signature that denoisers use.

    Raises:
        SpecError: at a call without classes, where the network was trained with classes only.
    """

    def __init__(self, unet: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.unet, self.channels, self.classes = unet, channels, classes

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), t (B,), label (B,) int64 -> the prediction, without a learned variance."""
        if self.classes and (label is None or bool((label < 0).any())):
            raise SpecError("this diffusers pipeline was trained with classes only; give a class for every image.")
        out: Tensor = self.unet(x, t, class_labels=label if self.classes else None, return_dict=False)[0]
        return out[:, : self.channels]


def _from_diffusers(folder: Path) -> DdpmDenoiser:
    """A DDPM pipeline as `DDPMPipeline.save_pretrained` writes it: unet/ and scheduler/."""
    if not folder.is_dir():
        raise ArtifactError(f"diffusers:{folder}: there is no such folder.")
    config = _read_json(folder / "unet" / "config.json")
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise SpecError(f"diffusers:{folder}: expected a UNet2DModel in unet/, got {config.get('_class_name')}.")
    if not (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file():
        raise ArtifactError(
            f"diffusers:{folder}: unet/diffusion_pytorch_model.safetensors is missing; weights as pickles are not "
            "read, save the pipeline with safe_serialization=True."
        )
    from diffusers import UNet2DModel  # here, not above: slow to import

    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
        schedule = _schedule(scheduler)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ArtifactError(f"diffusers:{folder} cannot be loaded: {first_line(error)}.") from error
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    channels, classes = int(config["in_channels"]), int(config.get("num_class_embeds") or 0)
    unet.eval().requires_grad_(False)
    return DdpmDenoiser(
        DiffusersUnet(unet, channels, classes),
        (channels, int(height), int(width)),
        classes,
        schedule=schedule,
        prediction=scheduler.get("prediction_type", "epsilon"),
    ).eval()


def _schedule(scheduler: dict[str, Any]) -> VpSchedule:
    """The abar_t that diffusers' own scheduler computes from its configuration, in float64."""
    from diffusers import DDPMScheduler

    return VpSchedule(DDPMScheduler.from_config(scheduler).alphas_cumprod.double())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: there is no such file; diffusers:PATH names a folder of DDPMPipeline.save_pretrained."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {first_line(error)}.") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content
