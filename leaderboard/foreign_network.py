"""A network that a stranger sent: tensors in a file that holds nothing else, and a card that names an architecture."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import torch

from robustgen.cards import Card
from robustgen.errors import SpecError
from robustgen.leaderboard.archive import WEIGHTS
from robustgen.leaderboard.strict import parse_object, read_object
from robustgen.nets import outline

__all__ = ["check_network", "check_tensors"]

_HEAD = 4_000_000  # bytes of the head of a safetensors file
_MOST = 4096  # the largest number in the options of a network
_DEEPEST = 256  # the largest of those that say how many layers there are
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
    "U64": 8, "F64": 8,
}  # fmt: skip


def check_tensors(path: Path) -> int:
    """Refuse a file that is no safetensors file through and through; the numbers in all its tensors together.

    A pickle has another head, tensors may neither overlap nor leave gaps, and the file ends where the last one does.

    Raises:
        SpecError: it is none.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if not 2 <= length <= min(_HEAD, size - 8):
            raise SpecError(f"{path}: no safetensors file: its head would have {length:,} of {size:,} bytes.")
        try:
            head = parse_object(file.read(length).decode("utf-8"), f"{path}: its head")
        except UnicodeDecodeError:
            raise SpecError(f"{path}: no safetensors file: its head is not text.") from None
    head.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry) for name, entry in head.items()]
    place = 0
    for begin, end, _ in sorted(tensors):
        if begin != place:
            raise SpecError(f"{path}: tensors overlap or leave a gap at byte {min(begin, place):,}.")
        place = end
    if place != size - 8 - length:
        raise SpecError(f"{path}: its tensors end at byte {place:,}, its data at {size - 8 - length:,}.")
    return sum(numbers for _, _, numbers in tensors)


def _tensor(path: Path, name: str, entry: Any) -> tuple[int, int, int]:
    """Begin, end and count of numbers of one tensor."""
    where = f"{path}: tensor {name[:60]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SpecError(f"{where} must have dtype, shape and data_offsets.")
    shape, offsets = entry["shape"], entry["data_offsets"]
    whole = all(isinstance(part, list) and all(type(k) is int and k >= 0 for k in part) for part in (shape, offsets))
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _SIZES or not whole or len(offsets) != 2:
        raise SpecError(f"{where} must be of a known dtype, with whole numbers for shape and data_offsets.")
    numbers, (begin, end) = math.prod(shape), offsets
    if end - begin != numbers * _SIZES[entry["dtype"]]:
        raise SpecError(f"{where} has {end - begin:,} bytes for {numbers:,} numbers of {entry['dtype']}.")
    return begin, end, numbers


def check_network(card: Path, weights: Path) -> None:
    """Refuse a card whose network needs more than its weights hold, before anything of that size is made.

    Raises:
        SpecError: no card, options out of all proportion, or a network of another size than its weights.
        ArtifactError: it cannot be read.
    """
    table = read_object(card)
    _check_options(card, "options", table.get("options"))
    found = Card.load(card)
    if found.weights != WEIGHTS:
        raise SpecError(f"{card}: weights must be {WEIGHTS}, which lies beside it, got {found.weights!r}.")
    with torch.random.fork_rng(devices=[]):
        state = outline(found.architecture, **found.options).state_dict()
    wanted, held = sum(tensor.numel() for tensor in state.values()), check_tensors(weights)
    if abs(wanted - held) > wanted // 100:
        raise SpecError(f"{card}: its network has {wanted:,} numbers, its weights hold {held:,}.")


def _check_options(card: Path, name: str, value: Any) -> None:
    most = _DEEPEST if name.startswith("depth") else _MOST
    if isinstance(value, dict):
        for key, part in value.items():
            _check_options(card, key, part)
    elif isinstance(value, list):
        if len(value) > 64:
            raise SpecError(f"{card}: {name[:40]} has {len(value)} entries, at most 64 are built.")
        for part in value:
            _check_options(card, name, part)
    elif isinstance(value, int | float) and abs(value) > most:
        raise SpecError(f"{card}: {name[:40]} must be at most {most}, got {value}.")
