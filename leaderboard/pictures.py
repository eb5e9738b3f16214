"""Witnesses to look at: a clean image, its adversarial one, and what lies between them, as pixels in a card.

A card holds pixels, never a file that somebody else encoded; what a page shows is encoded here.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustgen.errors import SpecError
from robustgen.fields import SEED, TEXT, Rule, check_fields, check_value

if TYPE_CHECKING:  # tables are made without it
    import numpy as np
    import numpy.typing as npt

__all__ = ["MOST", "Picture", "amplification", "pack_pixels", "png_of"]

MOST = 12  # pictures on a card
_LARGEST = 256  # pixels along a side
_GAP = 2  # pixels between two panels


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One broken example, rounded to bytes for the eye; the exact image is in the run's witnesses.

    Args:
        id: of the example.
        label, prediction: names of the true class and of the one that the adversarial image is taken for.
        shape: (C, H, W), C of 1 or 3.
        clean, adversarial: C * H * W bytes each, channels first, in base64.
    """

    id: int
    label: str
    prediction: str
    shape: tuple[int, int, int]
    clean: str
    adversarial: str

    def __post_init__(self) -> None:
        rules: dict[str, Rule] = {"id": SEED, "label": TEXT, "prediction": TEXT, "shape": _SHAPE}
        check_fields(self, "pictures", {f"pictures.{name}": rule for name, rule in rules.items()})
        for name in ("clean", "adversarial"):
            check_value(f"pictures.{name}", getattr(self, name), (lambda value: isinstance(value, str), "a text"))
            _unpacked(name, getattr(self, name), self.shape)

    def pixels(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Clean and adversarial image, (C, H, W) uint8."""
        import numpy as np

        held = (_unpacked(name, getattr(self, name), self.shape) for name in ("clean", "adversarial"))
        clean, adversarial = (np.frombuffer(content, np.uint8).reshape(self.shape) for content in held)
        return clean, adversarial


def pack_pixels(image: npt.NDArray[np.floating[Any]]) -> str:
    """(C, H, W) in [0, 1] as base64 of rounded bytes."""
    import numpy as np

    return base64.b64encode(np.rint(255 * image).astype(np.uint8).tobytes()).decode("ascii")


def amplification(pictures: Sequence[Picture]) -> int:
    """By how much differences are multiplied: the largest whole number with which all of them still fit around grey."""
    import numpy as np

    largest = 1
    for picture in pictures:
        clean, adversarial = picture.pixels()
        largest = max(largest, int(np.abs(adversarial.astype(int) - clean.astype(int)).max()))
    return max(1, math.floor(127 / largest))


def png_of(picture: Picture, factor: int) -> bytes:
    """Clean, adversarial and amplified difference around grey, side by side, as PNG."""
    import numpy as np
    from PIL import Image

    clean, adversarial = picture.pixels()
    difference = np.clip(128 + factor * (adversarial.astype(int) - clean.astype(int)), 0, 255).astype(np.uint8)
    gap = np.full((picture.shape[0], picture.shape[1], _GAP), 255, np.uint8)
    sheet = np.concatenate([clean, gap, adversarial, gap, difference], axis=2).transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _unpacked(name: str, text: str, shape: Sequence[int]) -> bytes:
    wanted = math.prod(shape)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SpecError(f"pictures.{name} must be base64.") from None
    if len(content) != wanted:
        raise SpecError(f"pictures.{name} must hold {wanted} bytes for {tuple(shape)}, got {len(content)}.")
    return content


def _is_shape(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 3 or not all(type(side) is int for side in value):
        return False
    return value[0] in (1, 3) and all(1 <= side <= _LARGEST for side in value[1:])


_SHAPE: Rule = (_is_shape, f"[1 or 3, height, width], at most {_LARGEST} pixels a side")
