"""Images from requests: JSON or PNG to a batch of tensors, or one sentence that says why not. Nothing is unpickled."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

__all__ = ["KINDS", "Refused", "decode", "encode"]

KINDS = ("application/json", "image/png")
_MODES = {1: "L", 3: "RGB"}
_NESTED = "image must be a list of channels of rows of numbers, each row as long as the others."
_FORMS = {"float32": np.float32, "uint8": np.uint8}


class Refused(Exception):  # noqa: N818 -- an answer, not a failure
    """A request that gets a status and one sentence; `wait` is after how many seconds it may come again."""

    def __init__(self, status: int, sentence: str, wait: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.wait = status, sentence, wait


def decode(body: bytes, kind: str, shape: tuple[int, int, int], most: int) -> Tensor:
    """The images of a request.

    Args:
        body: as it came, already held to a size.
        kind: its content type.
        shape: (C, H, W) that the classifier takes.
        most: images in one request.

    Returns:
        (B, C, H, W) float32 in [0, 1].

    Raises:
        Refused: another kind, no image, another shape, a value that is not finite or not in [0, 1].
    """
    if kind not in KINDS:
        raise Refused(415, f"content-type must be {' or '.join(KINDS)}, got '{kind[:60]}'.")
    pixels = _from_png(body, shape) if kind == "image/png" else _from_json(body)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[1:] != shape:
        raise Refused(400, f"image must be of shape {shape} or (B, {', '.join(map(str, shape))}), got {pixels.shape}.")
    if not 1 <= len(pixels) <= most:
        raise Refused(400, f"one request holds 1 to {most} images, got {len(pixels)}.")
    if pixels.dtype == np.uint8:
        pixels = pixels / np.float32(255)
    x = torch.from_numpy(np.array(pixels, np.float32))  # a copy: the bytes of a request cannot be written
    if not x.isfinite().all() or float(x.min()) < 0 or float(x.max()) > 1:
        raise Refused(400, "every value must be a finite number in [0, 1], or an integer of 0 to 255 with dtype uint8.")
    return x


def encode(x: Tensor) -> bytes:
    """Images (B, C, H, W) float32 as the JSON that `decode` reads, every bit kept."""
    data = base64.b64encode(x.contiguous().numpy().astype("<f4").tobytes()).decode()
    return json.dumps({"image": {"shape": list(x.shape), "dtype": "float32", "data": data}}).encode()


def _from_json(body: bytes) -> np.ndarray[Any, Any]:
    try:
        table = json.loads(body)
        value = table["image"]
    except RecursionError:
        raise Refused(400, "the JSON is nested too deep.") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise Refused(400, 'expected JSON such as {"image": [[[0.0, 0.5]]]}.') from None
    if isinstance(value, dict):
        return _from_base64(value)
    try:
        pixels = np.asarray(value)
    except (ValueError, OverflowError, RecursionError):
        raise Refused(400, _NESTED) from None
    if pixels.dtype.kind not in "iuf":
        raise Refused(400, _NESTED)
    return pixels.astype(np.float32)


def _from_base64(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    shape, name = value.get("shape"), value.get("dtype", "float32")
    if not isinstance(shape, list) or not 3 <= len(shape) <= 4 or not all(type(s) is int and s > 0 for s in shape):
        raise Refused(400, "image.shape must be a list of 3 or 4 whole numbers above 0.")
    if not isinstance(name, str) or name not in _FORMS:
        raise Refused(400, f"image.dtype must be {' or '.join(_FORMS)}.")
    try:
        raw = base64.b64decode(value["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise Refused(400, "image.data must be base64.") from None
    wanted = math.prod(shape) * np.dtype(_FORMS[name]).itemsize
    if len(raw) != wanted:
        raise Refused(400, f"image.data must hold {wanted} bytes for this shape and dtype, got {len(raw)}.")
    return np.frombuffer(raw, np.dtype(_FORMS[name]).newbyteorder("<")).reshape(shape)


def _from_png(body: bytes, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """One picture; its header is looked at before a pixel is unpacked, so that a small file cannot fill the memory."""
    wanted = f"the PNG must be of {shape[2]} x {shape[1]} pixels, mode {_MODES.get(shape[0], 'unknown')}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a bomb, which is refused here by its size
            with Image.open(io.BytesIO(body), formats=["PNG"]) as image:
                if image.size != (shape[2], shape[1]) or image.mode != _MODES.get(shape[0]):
                    raise Refused(400, f"{wanted}, got {image.size[0]} x {image.size[1]}, mode {image.mode}.")
                pixels = np.asarray(image)
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise Refused(400, f"{wanted}, got one that is far too large.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise Refused(400, "the body is no PNG that can be read.") from None
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
