"""A simulation of print and camera: a printer's range of tones, then gamma, blur, noise and JPEG of a camera.

A simulation, and no measurement: its constants are round numbers of the order that consumer printers and phones have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.fields import NOT_NEGATIVE, POSITIVE, Rule, check_value, number
from robustgen.patch.paste import blurred, through_jpeg
from robustgen.rng import ExampleRng

__all__ = ["PrintAndCamera"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintAndCamera:
    """Every patch is printed once; every photograph draws its own exposure, focus and noise.

    Args:
        ink, paper: reflectance of solid black and of bare paper, between which all tones of the print lie.
        dot_gain: exponent of the printed tones; above 1 they come out darker.
        gamma: the camera's exponent lies between 1 / (1 + gamma) and 1 + gamma.
        blur: largest standard deviation of its Gaussian, in pixels of the image.
        noise: standard deviation of its noise, in pixels of [0, 1].
        quality: of its JPEG.
    """

    ink: float = 0.08
    paper: float = 0.92
    dot_gain: float = 1.15
    gamma: float = 0.15
    blur: float = 0.6
    noise: float = 0.02
    quality: int = 80

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            check_value(f"camera: {name}", getattr(self, name), rule)

    def printed(self, patch: Tensor) -> Tensor:
        """The patch (..., h, w) in [0, 1] as it comes out of the printer."""
        return self.ink + (self.paper - self.ink) * patch.clamp(0, 1) ** self.dot_gain

    def photographed(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Images (B, C, H, W) in [0, 1] as the camera stores them, the same for the same streams."""
        u = rng.uniform((2,), "camera", 0, x.device)
        exponent = (1 + self.gamma) ** (2 * u[:, 0] - 1)
        seen = blurred(x ** exponent[:, None, None, None], self.blur * u[:, 1])
        seen = (seen + self.noise * rng.normal(x.shape[1:], "camera noise", 0, x.device)).clamp(0, 1)
        return through_jpeg(seen, torch.full((len(x),), self.quality, device=x.device))

    def to_json(self) -> dict[str, Any]:
        """Its constants, named as what they are."""
        return {"kind": "simulation of print and camera", **asdict(self)}


_RULES: dict[str, Rule] = {
    "ink": (number(0, 1), "a number in [0, 1)"),
    "paper": (number(0, 1.0001), "a number from 0 to 1"),
    "dot_gain": POSITIVE,
    "gamma": NOT_NEGATIVE,
    "blur": NOT_NEGATIVE,
    "noise": NOT_NEGATIVE,
    "quality": (lambda value: isinstance(value, int) and 1 <= value <= 100, "1 to 100"),
}
