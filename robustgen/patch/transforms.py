"""What happens to a patch on its way into an image: ranges that are drawn from anew for each image and step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from robustgen.errors import SpecError, unknown_name
from robustgen.fields import NOT_NEGATIVE, Rule, check_value, number
from robustgen.rng import ExampleRng

__all__ = ["Draws", "Transforms"]

_QUALITIES = 96  # JPEG qualities are drawn from the lowest one up to 95


@dataclass(frozen=True, slots=True)
class Draws:
    """One draw for each image; every tensor has the batch first and is float32 unless said otherwise.

    Attributes:
        angle: (B,) degrees, counter-clockwise as seen.
        scale: (B,) side of the patch over its nominal side.
        corners: (B, 4, 2) how far the corners move, (x, y) in half sides; upper left, upper right, lower right, lower
            left.
        brightness: (B,) added to the patch, in pixels of [0, 1].
        contrast: (B,) factor of the patch's distance from grey.
        blur: (B,) standard deviation of the Gaussian, in pixels of the image.
        noise: (B,) standard deviation of the noise on each pixel of the patch, in [0, 1].
        quality: (B,) int64, of JPEG; 0 for none.
        place: (B, 2) uniform in [0, 1): where among all places, for a location that is random.
    """

    angle: Tensor
    scale: Tensor
    corners: Tensor
    brightness: Tensor
    contrast: Tensor
    blur: Tensor
    noise: Tensor
    quality: Tensor
    place: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Ranges, each drawn from uniformly; all at their neutral value leave the patch as it is.

    Args:
        rotation: degrees to either side.
        scale_low, scale_high: side of the patch over its nominal side.
        perspective: how far each corner moves in x and y, to either side, as a share of half the side; below 1/2.
        brightness: added, to either side, in pixels of [0, 1].
        contrast: 1 plus so much, to either side.
        blur: largest standard deviation of a Gaussian, in pixels of the image.
        noise: largest standard deviation of the noise on the patch, in [0, 1].
        jpeg: lowest quality of JPEG, which then goes up to 95; 0 for none.
    """

    rotation: float = 20.0
    scale_low: float = 0.8
    scale_high: float = 1.2
    perspective: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.1
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            check_value(f"--transforms: {name}", getattr(self, name), rule)
        if self.scale_high < self.scale_low:
            raise SpecError(f"--transforms: scale runs backwards, {self.scale_low:g} to {self.scale_high:g}.")

    @classmethod
    def none(cls) -> Transforms:
        """The patch as it is, upright and in its nominal size."""
        return cls(rotation=0.0, scale_low=1.0, scale_high=1.0, brightness=0.0, contrast=0.0)

    @classmethod
    def parse(cls, text: str) -> Transforms:
        """Read "rotation=20,scale=0.8:1.2,jpeg=60", what is not named staying neutral; "default"; or "none".

        Raises:
            SpecError: an unknown transformation, or a value that is none.
        """
        if text.strip() in ("default", "none"):
            return cls() if text.strip() == "default" else cls.none()
        known = {"rotation", "scale", *(f.name for f in fields(cls) if not f.name.startswith("scale"))}
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key not in known:
                raise unknown_name("transformation", key, known, hint="Type for example rotation=20,scale=0.8:1.2.")
            values |= _read(key, value)
        return cls(**{**_table(cls.none()), **values})

    def __str__(self) -> str:
        """As `parse` reads it; "none" where nothing happens."""
        neutral, mine = _table(Transforms.none()), _table(self)
        parts = [f"{k}={v:g}" for k, v in mine.items() if v != neutral[k] and not k.startswith("scale")]
        if (self.scale_low, self.scale_high) != (1.0, 1.0):
            parts.append(f"scale={self.scale_low:g}:{self.scale_high:g}")
        return ",".join(parts) or "none"

    def draw(self, rng: ExampleRng, step: int, device: torch.device) -> Draws:
        """One draw for each stream, of its own at each step."""
        u = rng.uniform((17,), "patch transforms", step, device)
        both = 2 * u - 1
        quality = self.jpeg + (u[:, 14] * (_QUALITIES - self.jpeg)).long()
        return Draws(
            angle=self.rotation * both[:, 0],
            scale=self.scale_low + (self.scale_high - self.scale_low) * u[:, 1],
            corners=self.perspective * both[:, 2:10].reshape(-1, 4, 2),
            brightness=self.brightness * both[:, 10],
            contrast=1 + self.contrast * both[:, 11],
            blur=self.blur * u[:, 12],
            noise=self.noise * u[:, 13],
            quality=quality if self.jpeg else torch.zeros_like(quality),
            place=u[:, 15:],
        )


def _table(given: Transforms) -> dict[str, float]:
    return {f.name: getattr(given, f.name) for f in fields(given)}


def _read(key: str, value: str) -> Mapping[str, Any]:
    """One setting as fields."""
    try:
        if key == "scale":
            low, colon, high = value.partition(":")
            return {"scale_low": float(low), "scale_high": float(high if colon else low)}
        return {key: int(value) if key == "jpeg" else float(value)}
    except ValueError:
        wanted = {"scale": "LOW:HIGH such as 0.8:1.2", "jpeg": "a quality such as 60"}.get(key, "a number")
        raise SpecError(f"--transforms: {key} must be {wanted}, got '{value}'.") from None


_RULES: dict[str, Rule] = {
    "rotation": (number(0, 180.0001), "degrees from 0 to 180"),
    "scale_low": (number(0, math.inf, open_low=True), "a number above 0"),
    "scale_high": (number(0, math.inf, open_low=True), "a number above 0"),
    "perspective": (number(0, 0.5), "a number in [0, 0.5)"),
    "brightness": (number(0, 1.0001), "a number from 0 to 1"),
    "contrast": (number(0, 1), "a number in [0, 1)"),
    "blur": NOT_NEGATIVE,
    "noise": NOT_NEGATIVE,
    "jpeg": (lambda value: isinstance(value, int) and 0 <= value <= 95, "a quality from 1 to 95, or 0 for none"),
}
