"""Packed witnesses: without a lost bit, small where they can be, readable without robustgen."""

from __future__ import annotations

import lzma
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor

from robustgen import witnesses
from robustgen.errors import RecordError
from robustgen.witnesses import Parts, pack_parts, part_record, read_witnesses, save_packed, unpack, whole_bytes


def folder(tmp_path: Path) -> Path:
    """RUN/witnesses."""
    path = tmp_path / "witnesses"
    path.mkdir()
    return path


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def images(count: int, shape: tuple[int, int, int] = (3, 5, 7)) -> Tensor:
    """Any floats, some of them special."""
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, 1e-40, torch.nan])
    return x


def test_no_bit_is_lost(tmp_path: Path) -> None:
    """Signed zeros, subnormal numbers and NaN included; ids in order."""
    x = images(5)
    save_packed(x, [2, 3, 5, 7, 11], folder(tmp_path) / "adversarials-00000.safetensors")
    ids, found = zip(*read_witnesses(tmp_path), strict=True)
    assert (2, 3, 5, 7, 11) == ids
    assert same(x, torch.stack(found))


def test_bytes_where_they_are_exact(tmp_path: Path) -> None:
    """Images of k / 255 are kept as bytes, and come back as the very same floats; one pixel between them is enough."""
    grey = torch.randint(0, 256, (40, 1, 9, 9), generator=torch.Generator().manual_seed(0)).float() / 255
    path = folder(tmp_path) / "adversarials-00000.safetensors"
    save_packed(grey, range(40), path)
    small = path.stat().st_size
    assert same(grey, torch.stack([image for _, image in read_witnesses(tmp_path)]))
    assert small < 0.35 * 4 * grey.numel()
    grey[7, 0, 3, 3] += 1e-6
    save_packed(grey, range(40), path)
    assert same(grey, torch.stack([image for _, image in read_witnesses(tmp_path)]))
    assert path.stat().st_size > small


def test_the_documented_way_to_read_one(tmp_path: Path) -> None:
    """As docs/records.md says, with numpy and the standard library alone."""
    x = images(4)
    path = folder(tmp_path) / "adversarials-00000.safetensors"
    save_packed(x, [1, 2, 3, 4], path)
    held = load_file(path)
    again = np.frombuffer(lzma.decompress(held["packed"].tobytes()), "<f4").reshape(-1, *held["shape"])
    assert x.numpy().tobytes() == again.tobytes()
    assert [1, 2, 3, 4] == held["ids"].tolist()


def test_parts_become_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is wanted, sorted, the later of two with one id, so many a file; and back again."""
    monkeypatch.setattr(witnesses, "_IMAGES", 3)
    at, x = folder(tmp_path), images(9)
    (at / "part-1.bin").write_bytes(b"".join(part_record(id_, x[k]) for id_, k in ((8, 8), (1, 0), (4, 4), (1, 1))))
    (at / "part.bin").write_bytes(b"".join(part_record(k, x[k]) for k in (2, 3, 6)) + part_record(5, x[5])[:-1])
    parts = Parts(at, "part", (3, 5, 7))
    pack_parts(at, parts, [8, 1, 2, 3, 4])
    assert 2 == len(list(at.glob("adversarials-*.safetensors")))
    found = dict(read_witnesses(tmp_path))
    assert [1, 2, 3, 4, 8] == list(found)
    assert all(same(x[id_], image) for id_, image in found.items())
    assert 5 not in parts, "it was cut off"
    assert whole_bytes(at / "part.bin", (3, 5, 7)) == 3 * len(part_record(0, x[0]))
    for part in at.glob("part*"):
        part.unlink()
    unpack(at)
    again = Parts(at, "part", (3, 5, 7))
    assert not list(at.glob("adversarials-*"))
    assert all(same(x[id_], again[id_]) for id_ in found)
    assert 6 not in again


def test_files_that_lie_about_themselves(tmp_path: Path) -> None:
    """Too few bytes for the ids, or none that can be unpacked: one sentence with the name of the file."""
    path = folder(tmp_path) / "adversarials-00000.safetensors"
    save_packed(images(4), [1, 2, 3], path)
    with pytest.raises(RecordError, match=r"adversarials-00000.safetensors cannot be read: it holds 1261 bytes"):
        list(read_witnesses(tmp_path))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(RecordError, match="cannot be read"):
        list(read_witnesses(tmp_path))


def test_nothing_is_unpacked_beyond_what_is_announced(tmp_path: Path) -> None:
    """64 MB of zeros behind three ids, and ids that announce terabytes: a sentence, and no memory spent on it."""
    path = folder(tmp_path) / "adversarials-00000.safetensors"
    bomb = np.frombuffer(lzma.compress(bytes(2**26), preset=0), np.uint8).copy()
    for ids, shape, message in (
        (torch.arange(3), [1, 9, 9], "it holds 973 bytes or more for 3 images"),
        (torch.arange(2**20), [3, 512, 512], "it announces 1048576 images"),
        (torch.arange(3), [1, 9, -9], "expected ids"),
        (torch.arange(3.0), [1, 9, 9], "expected ids"),
    ):
        save_file({"ids": ids, "shape": torch.tensor(shape), "packed": torch.from_numpy(bomb)}, path)
        tracemalloc.start()
        with pytest.raises(RecordError, match=message):
            list(read_witnesses(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
