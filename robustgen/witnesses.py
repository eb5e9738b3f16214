"""Adversarial images on disk: losslessly packed, readable without the data they were made from.

A finished run keeps them in witnesses/adversarials-00000.safetensors and so on, in order of their ids. Each file holds

    ids     (N,) int64
    shape   (3,) int64: C, H, W
    packed  uint8: an xz stream of N images, float32 little-endian, or uint8 where every pixel is exactly k / 255

Where there is no eps they are the nearest of all attacks; what another attack found for an example that it did not come
nearest to lies in witnesses/by-ATTACK-00000.safetensors, in the same form.

So `np.frombuffer(lzma.decompress(packed), "<f4").reshape(N, C, H, W)` reads one without robustgen. While a run is under
way, each rank appends its images to part.bin as they come, unpacked: the key as int64, then the pixels as float32. The
key is the example's id; of the k-th attack of a run that keeps one image for each, from 1, it is id + k 2^32.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustgen.durable import remove, replace
from robustgen.errors import RecordError

__all__ = [
    "Parts",
    "pack_parts",
    "part_record",
    "read_found_by",
    "read_nearest",
    "read_witnesses",
    "save_packed",
    "slot_key",
    "unpack",
    "whole_bytes",
]

_IMAGES, _BYTES = 1024, 64 * 2**20  # the most that one file holds, before packing
# Pixels are four bytes wide, and many of them equal x + eps or x - eps of a few grey values: bits of the position.
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 1, "lc": 1, "lp": 2, "pb": 2}]


def slot_key(id_: int, slot: int) -> int:
    """Under which key the image of an example is appended that the attack in this slot found; slot 0 is for its own."""
    return id_ + (slot << 32)


def part_record(id_: int, image: Tensor) -> bytes:
    """One image (C, H, W) float32 as it is appended."""
    return np.int64(id_).tobytes() + image.float().contiguous().numpy().astype("<f4", copy=False).tobytes()


class Parts:
    """The images that the ranks of an unfinished run have appended, read one by one; the later of two with one id.

    Args:
        folder: RUN/witnesses.
        kind: part for witnesses, near for the points that came nearest.
        shape: (C, H, W).
    """

    def __init__(self, folder: Path, kind: str, shape: tuple[int, int, int]) -> None:
        self._shape, self._form = shape, _record_form(shape)
        self._where: dict[int, tuple[Path, int]] = {}
        for path in sorted(folder.glob(f"{kind}*.bin")):
            self._where |= {id_: (path, k) for k, id_ in enumerate(_records(path, self._form)["id"].tolist())}

    def __contains__(self, id_: int) -> bool:
        return id_ in self._where

    def __getitem__(self, id_: int) -> Tensor:
        """(C, H, W) float32."""
        path, k = self._where[id_]
        return torch.from_numpy(_records(path, self._form)[k]["pixels"].astype(np.float32)).reshape(self._shape)


def _record_form(shape: tuple[int, int, int]) -> np.dtype[Any]:
    return np.dtype([("id", "<i8"), ("pixels", "<f4", (math.prod(shape),))])


def _records(path: Path, form: np.dtype[Any]) -> npt.NDArray[Any]:
    """The whole records of a file, not read yet; one that was cut off at the end is left out."""
    count = path.stat().st_size // form.itemsize
    return np.memmap(path, form, "r", shape=(count,)) if count else np.empty(0, form)


def whole_bytes(path: Path, shape: tuple[int, int, int]) -> int:
    """How many bytes of a part are whole records."""
    size = _record_form(shape).itemsize
    return path.stat().st_size // size * size


def pack_parts(folder: Path, parts: Parts, wanted: Sequence[int], name: str = "adversarials", *, slot: int = 0) -> None:
    """Bring the parts in a folder into the final form, with the images of these ids, sorted; the parts stay."""
    held = [slot_key(id_, slot) for id_ in sorted(wanted) if slot_key(id_, slot) in parts]
    for k, keys in enumerate(_groups(held, parts)):
        images, ids = torch.stack([parts[key] for key in keys]), [key - slot_key(0, slot) for key in keys]
        save_packed(images, ids, folder / f"{name}-{k:05d}.safetensors")


def unpack(folder: Path) -> None:
    """Turn packed files into a part again: an earlier process was stopped between packing and its last write."""
    for path in (*folder.glob("nearest-*.safetensors"), *folder.glob("by-*.safetensors")):
        remove(path)  # the parts it was made from are there still
    for path in sorted(folder.glob("adversarials-*.safetensors")):
        part = folder / f"part-0-{path.stem}.bin"
        replace(part, b"".join(part_record(id_, image) for id_, image in _unpacked(path)))
        remove(path)


def save_packed(images: Tensor, ids: Sequence[int], path: Path) -> None:
    """Write one file in the final form: images (N, C, H, W) float32 with their ids."""
    grey = (images * 255).round()
    exact = bool(((grey / 255 == images) & (grey >= 0) & (grey <= 255)).all())
    pixels = grey.byte().numpy() if exact else images.numpy().astype("<f4", copy=False)
    stream = lzma.compress(pixels.tobytes(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_XZ)
    packed = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    tensors = {"ids": torch.tensor(ids), "shape": torch.tensor(images.shape[1:]), "packed": packed}
    replace(path, save(tensors))


def read_witnesses(run: Path) -> Iterator[tuple[int, Tensor]]:
    """(example id, adversarial image (C, H, W) float32) of every broken example of a finished run, file by file.

    Raises:
        RecordError: a file cannot be read.
    """
    yield from _read(run, "adversarials")


def read_nearest(run: Path) -> Iterator[tuple[int, Tensor]]:
    """(example id, image) of the examples of a randomised classifier that nothing broke: where an attack came nearest.

    Raises:
        RecordError: a file cannot be read.
    """
    yield from _read(run, "nearest")


def read_found_by(run: Path, label: str) -> Iterator[tuple[int, Tensor]]:
    """(example id, image) of what one attack of a run without an eps found, where another found a nearer one.

    Raises:
        RecordError: a file cannot be read.
    """
    yield from _read(run, f"by-{label}")


def _read(run: Path, name: str) -> Iterator[tuple[int, Tensor]]:
    for path in sorted((run / "witnesses").glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].safetensors")):
        try:
            yield from _unpacked(path)
        except (SafetensorError, lzma.LZMAError, ValueError, OSError) as error:
            raise RecordError(f"{path} cannot be read: {error}.") from None


def _groups(ids: Sequence[int], parts: Parts) -> Iterator[Sequence[int]]:
    if ids:
        count = max(1, min(_IMAGES, _BYTES // (4 * parts[ids[0]].numel())))
        yield from (ids[at : at + count] for at in range(0, len(ids), count))


def _unpacked(path: Path) -> Iterator[tuple[int, Tensor]]:
    """Id and image of each row of a packed file; never more bytes than its own shape announces are unpacked."""
    with safe_open(path, "pt") as file:
        ids, shape, packed = (file.get_tensor(name) for name in ("ids", "shape", "packed"))
    sides = shape.tolist()
    if (ids.dim(), ids.dtype, packed.dtype) != (1, torch.int64, torch.uint8) or len(sides) != 3 or min(sides) < 1:
        raise ValueError("expected ids (N,) int64, shape (3,) of sides >= 1, and packed uint8")
    count = len(ids) * math.prod(sides)
    if 4 * count > max(_BYTES, 4 * math.prod(sides)) or math.prod(sides) > _BYTES:
        raise ValueError(f"it announces {len(ids)} images of shape {sides}, more than a file holds")
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=4 * _BYTES)
    content = unpacker.decompress(packed.numpy().tobytes(), 4 * count + 1)
    if len(content) == count:
        pixels = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).float() / 255
    elif len(content) == 4 * count:
        pixels = torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))
    else:
        raise ValueError(f"it holds {len(content)} bytes or more for {len(ids)} images of shape {sides}")
    yield from zip(ids.tolist(), pixels.reshape(-1, *sides), strict=True)
