"""The fifteen corruptions with the constants of each severity, and the one function that applies them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustgen.corruptions import blur, digital, noise, weather
from robustgen.corruptions.draw import Array
from robustgen.errors import SpecError, unknown_name
from robustgen.rng import ExampleRng

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "check_severity", "corrupt", "corruption_of"]

SEVERITIES = (1, 2, 3, 4, 5)
_EDGE = 32  # pixels: lengths in the constants are for images of this size
Apply = Callable[[Array, tuple[float, ...], ExampleRng, float], Array]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind.

    Attributes:
        family: "noise", "blur", "weather" or "digital".
        apply: images (B, C, H, W) float64 in [0, 1], constants, streams, scale -> images.
        constants: of severities 1 to 5; what they mean says the docstring of `apply`.
        published: whether they are those of CIFAR-10-C; else chosen here, so that severities are in order.
    """

    family: str
    apply: Apply
    constants: tuple[tuple[float, ...], ...]
    published: bool = False

    @property
    def name(self) -> str:
        """As the files of CIFAR-10-C are called."""
        return self.apply.__name__

    @property
    def description(self) -> str:
        """One line."""
        return (inspect.getdoc(self.apply) or "").partition("\n")[0]


_ALL = (
    Corruption("noise", noise.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)), published=True),
    Corruption("noise", noise.shot_noise, ((500,), (250,), (100,), (75,), (50,)), published=True),
    Corruption("noise", noise.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)), published=True),
    Corruption("blur", blur.defocus_blur, ((0.7,), (0.9,), (1.1,), (1.4,), (1.8,))),
    Corruption("blur", blur.glass_blur, ((0.30, 0.6), (0.35, 0.9), (0.40, 1.2), (0.45, 1.6), (0.50, 2.1))),
    Corruption("blur", blur.motion_blur, ((3, 1.2), (4, 1.6), (5, 2.2), (6, 3), (8, 4))),
    Corruption("blur", blur.zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    Corruption(
        "weather", weather.snow,
        ((0.05, 0.65, 2, 0.95), (0.08, 0.62, 2.5, 0.92), (0.11, 0.59, 3, 0.88), (0.14, 0.56, 3.5, 0.84),
         (0.17, 0.53, 4, 0.80)),
    ),
    Corruption("weather", weather.frost, ((1.0, 0.25), (0.95, 0.40), (0.90, 0.50), (0.85, 0.60), (0.75, 0.70))),
    Corruption("weather", weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), published=True),
    Corruption("weather", weather.brightness, ((0.05,), (0.10,), (0.15,), (0.20,), (0.30,)), published=True),
    Corruption("digital", digital.contrast, ((0.75,), (0.50,), (0.40,), (0.30,), (0.15,)), published=True),
    Corruption(
        "digital", digital.elastic_transform,
        ((0.4, 2.5, 0.3), (0.6, 2.5, 0.5), (0.8, 2.5, 0.7), (1.0, 2.5, 0.9), (1.3, 2.5, 1.2)),
    ),
    Corruption("digital", digital.pixelate, ((0.85,), (0.70,), (0.58,), (0.47,), (0.38,))),
    Corruption("digital", digital.jpeg_compression, ((80,), (65,), (58,), (50,), (40,)), published=True),
)  # fmt: skip

CORRUPTIONS = {corruption.name: corruption for corruption in _ALL}


def corruption_of(name: str) -> Corruption:
    """By name.

    Raises:
        SpecError: there is none; the nearest is named.
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS, hint="See `robustgen list corruptions`.")
    return CORRUPTIONS[name]


def check_severity(severity: int) -> int:
    """The severity, if it is one.

    Raises:
        SpecError: it is not 1 to 5.
    """
    if severity not in SEVERITIES:
        raise SpecError(f"a severity is 1 to 5, got {severity}.")
    return severity


def corrupt(x: Tensor, name: str, severity: int, rng: ExampleRng) -> Tensor:
    """Corrupt images, each by its own streams: the same for any batch.

    Severities share their random numbers, so that a harder one is more of the same.

    Args:
        x: (B, C, H, W) float32 in [0, 1], C of 1 or 3.
        name: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        rng: one stream an image.

    Returns:
        (B, C, H, W) float32: multiples of 1/255 in [0, 1].

    Raises:
        SpecError: an unknown name or severity, or images of other channels.
    """
    kind, constants = corruption_of(name), corruption_of(name).constants[check_severity(severity) - 1]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise SpecError(f"corruptions are for images (B, C, H, W) of 1 or 3 channels, got {tuple(x.shape)}.")
    scale = min(x.shape[2:]) / _EDGE
    out = kind.apply(x.double().cpu().numpy(), constants, rng, scale)
    pixels = np.rint(out.clip(0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(pixels).float() / 255
