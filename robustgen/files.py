"""Reading image files: the idx format, and folders of images; and patience with the network."""

from __future__ import annotations

import contextlib
import gzip
import math
import socket
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from robustgen.errors import ArtifactError, SpecError

__all__ = ["ImageFolder", "impatient", "read_folder", "read_idx", "read_image"]

DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer before a download is given up
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Give up connections that stay silent for `DOWNLOAD_TIMEOUT` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """An array of unsigned bytes in the idx format, plain or (name ending in .gz) compressed.

    Raises:
        ArtifactError: the file is truncated, or not what its name says.

    Source: LeCun, "The MNIST database": two zero bytes, type 0x08, the number of dimensions, each as big-endian int32.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); get the file again.") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ArtifactError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">i4", dimensions, offset=4))
    held, wanted = len(content) - header, math.prod(shape)
    if held != wanted:
        raise ArtifactError(f"{path}: truncated: the header announces {wanted} bytes, {held} follow; get it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


class ImageFolder(NamedTuple):
    """What a folder of images holds: labels (N,) int64, shape (C, H, W), class names, and how to read one image."""

    labels: npt.NDArray[np.int64]
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    read: Callable[[int], npt.NDArray[Any]]


def read_folder(root: Path) -> ImageFolder:
    """Images in one sub-folder a class; classes and files are sorted by name, and decoded only when read.

    Images stay grey (C = 1) when all files are grey, otherwise they are read as RGB.

    Raises:
        SpecError: no sub-folder, one without images, or images of different sizes.
        ArtifactError: the folder does not exist, or a file cannot be read.
    """
    if not root.is_dir():
        raise ArtifactError(f"folder:{root}: there is no such folder.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise SpecError(f"folder:{root}: expected one sub-folder a class, found none.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise SpecError(f"folder:{root}: the class '{folder.name}' has no images; remove the sub-folder.")
        paths += found
        labels += [label] * len(found)
    size, mode = _common_form(paths)

    def read(index: int) -> npt.NDArray[np.uint8]:
        with _opened(paths[index]) as image:
            pixels = np.asarray(image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1)

    width, height = size
    shape = (1 if mode == "L" else 3, height, width)
    return ImageFolder(np.asarray(labels, np.int64), shape, tuple(folder.name for folder in folders), read)


def read_image(path: Path, channels: int) -> npt.NDArray[np.float32]:
    """One image as (C, H, W) float32 in [0, 1], grey (C = 1) or RGB (C = 3) as asked.

    Raises:
        ArtifactError: it cannot be read.
    """
    with _opened(path) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return (pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1) / np.float32(255)).astype(np.float32)


def _common_form(paths: list[Path]) -> tuple[tuple[int, int], str]:
    """(width, height) of all images, and the mode to read them in; only the headers are read."""
    first: tuple[int, int] | None = None
    grey = True
    for path in paths:
        with _opened(path) as image:
            first = first or image.size
            if image.size != first:
                raise SpecError(
                    f"{path} has {image.size[0]} x {image.size[1]} pixels, {paths[0]} has {first[0]} x {first[1]}: "
                    "all images must share one size; resize or crop them first."
                )
            if image.mode.startswith(("I", "F")):
                raise SpecError(f"{path} has more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits.")
            grey = grey and image.mode in ("1", "L")
    assert first is not None  # read_folder gives at least one path
    return first, "L" if grey else "RGB"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # far more pixels than a file has bytes for
            with Image.open(path) as image:
                yield image
    except (UnidentifiedImageError, OSError, SyntaxError, *_BOMBS) as error:
        raise ArtifactError(f"{path}: cannot be read as an image ({error}); repair or remove it.") from error
