"""`robustgen generator sample`: many images into one file, in blocks that survive kill -9, on any number of ranks.

Images go straight into an array on the disk, so that a million of them need no more memory than one batch. Block b of
image ids belongs to rank b mod size; what is finished stands in a journal, one line a block, written after the block is
on the disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustgen import durable
from robustgen.errors import RecordError, SpecError
from robustgen.generator.denoiser import Denoiser, Guided, to_uint8
from robustgen.generator.draw import draw
from robustgen.generator.load import Generator
from robustgen.generator.samplers import Sampler, describe_sampler
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.rng import ExampleRng

__all__ = ["BLOCK", "SampleSpec", "sample_to_file"]

BLOCK = 500  # images a block: what a kill can cost, at most


@dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """Everything that the images depend on.

    Args:
        n: how many.
        seed: 0 <= seed < 2^64.
        guidance: weight of classifier-free guidance; 1 for none.
        label: the class of all images; None for all classes in turn: image i is of class i mod K.
    """

    n: int
    seed: int = 0
    guidance: float = 1.0
    label: int | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SpecError(f"--n must be >= 1, got {self.n}.")
        ExampleRng.of(self.seed, [0])  # refuses an impossible seed

    def labels(self, ids: torch.Tensor, classes: int) -> torch.Tensor | None:
        """The classes of some images, or None where the generator knows none."""
        if not classes:
            return None
        return torch.full_like(ids, self.label) if self.label is not None else ids % classes


def sample_to_file(
    generator: Generator,
    sampler: Sampler,
    spec: SampleSpec,
    out: Path,
    *,
    batch_size: int = 250,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Draw images into an .npz, or go on where an interrupted call stopped.

    The file holds `image` (N, H, W, C) uint8, `label` (N,) int64 (-1 where the generator knows no classes) and
    `provenance`, a JSON text. While it is being made there is a folder OUT.part beside it.

    Guarantee: image i depends on weights, sampler, seed and i alone, up to rounding in the network.

    Raises:
        SpecError: an impossible class or file name.
        RecordError: OUT exists, or OUT.part belongs to another request; the fields that differ are named.
        RobustgenError: the disk is full; what was drawn is kept.
    """
    ranks, progress = ranks or Ranks(), progress or Silent()
    if out.suffix != ".npz":
        raise SpecError(f"--out must end in .npz, got '{out}'.")
    if out.exists():
        raise RecordError(f"--out: {out} exists; name another file.")
    denoiser = generator.denoiser
    if spec.label is not None and not 0 <= spec.label < max(denoiser.classes, 0):
        known = f"has the classes 0 to {denoiser.classes - 1}" if denoiser.classes else "knows no classes"
        raise SpecError(f"--class {spec.label}: {generator.name} {known}.")
    if spec.guidance != 1:
        denoiser = Guided(denoiser, spec.guidance)
    sampler.sigmas(denoiser)  # an impossible number of steps is refused before any work
    provenance = _provenance(generator, sampler, spec)
    folder = out.with_name(f"{out.name}.part")
    with durable.disk_errors(folder), ExitStack() as stack:
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(durable.FolderLock(folder).release)
            _open(folder, provenance, spec.n, denoiser.shape)
        ranks.gather(0)  # nobody writes before the folder is checked
        _draw_blocks(_Parts(folder, spec.n), denoiser, sampler, spec, batch_size, ranks, progress)
        ranks.gather(0)  # all blocks are written
        if ranks.first:
            _pack(folder, out, spec, denoiser.classes, provenance)
    return out


def _draw_blocks(
    parts: _Parts,
    denoiser: Denoiser,
    sampler: Sampler,
    spec: SampleSpec,
    batch_size: int,
    ranks: Ranks,
    progress: Progress,
) -> None:
    """The blocks of this rank that are not on the disk yet."""
    done = parts.finished()
    count = sum(len(parts.ids(block)) for block in done)
    progress.start("images", spec.n)
    for block in range(ranks.rank, parts.blocks, ranks.size):
        if block in done:
            continue
        ids = parts.ids(block)
        label = spec.labels(torch.tensor(ids), denoiser.classes)
        x = draw(denoiser, sampler, ids, label, seed=spec.seed, batch_size=batch_size)
        parts.write(block, to_uint8(x).numpy(), ranks.rank)
        count += len(ids)
        progress.advance(count, f"block {block + 1} of {parts.blocks}")


def _provenance(generator: Generator, sampler: Sampler, spec: SampleSpec) -> dict[str, Any]:
    name = Path(generator.name).name if generator.card is None else generator.card.name  # no path of this machine
    return {
        "generator": name,
        "command": _command(name, sampler, spec),
        "weights_sha256": generator.sha256,
        "trained_on": None if generator.card is None else generator.card.trained_on,
        "sampler": {"name": type(sampler).__name__, **_plain(asdict(sampler))},  # type: ignore[call-overload]
        "precision": generator.precision,
        **asdict(spec),
    }


def _command(name: str, sampler: Sampler, spec: SampleSpec) -> str:
    parts = [f"robustgen generator sample {name} --n {spec.n} --sampler {describe_sampler(sampler)} --seed {spec.seed}"]
    if spec.guidance != 1:
        parts.append(f"--guidance {spec.guidance:g}")
    if spec.label is not None:
        parts.append(f"--class {spec.label}")
    return " ".join(parts)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {
        key: str(value) if isinstance(value, float) and math.isinf(value) else value for key, value in settings.items()
    }


def _open(folder: Path, provenance: dict[str, Any], n: int, shape: tuple[int, int, int]) -> None:
    """Make the folder, or make sure that it belongs to this request."""
    held = folder / "request.json"
    if held.is_file():
        other = json.loads(held.read_text(encoding="utf-8"))
        differing = [key for key in provenance if other.get(key) != provenance[key]]
        if differing:
            raise RecordError(
                f"--out: {folder} belongs to another request ("
                + "; ".join(f"{key}: {provenance[key]} here, {other.get(key)} there" for key in differing)
                + "); name another file, or remove that folder."
            )
        return
    channels, height, width = shape
    array = folder / "image.npy"
    np.lib.format.open_memmap(array, mode="w+", dtype=np.uint8, shape=(n, height, width, channels)).flush()
    if hasattr(os, "posix_fallocate"):  # a disk too small is found here, not by a bus error in the middle
        with array.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.stat().st_size)
    durable.write_json(held, provenance)


class _Parts:
    """The folder of images on their way, and which blocks of them are finished."""

    def __init__(self, folder: Path, n: int) -> None:
        self._folder, self._n = folder, n
        self._array = np.load(folder / "image.npy", mmap_mode="r+")
        self.blocks = math.ceil(n / BLOCK)

    def ids(self, block: int) -> list[int]:
        """The images of a block."""
        return list(range(block * BLOCK, min(self._n, (block + 1) * BLOCK)))

    def finished(self) -> set[int]:
        """Blocks that are on the disk, whichever rank drew them."""
        return {
            int(line)
            for path in self._folder.glob("done-*")
            for line in path.read_text(encoding="ascii").splitlines(keepends=True)
            if line.endswith("\n")  # a line cut by a crash does not count
        }

    def write(self, block: int, images: np.ndarray[Any, np.dtype[np.uint8]], rank: int) -> None:
        """A block to the disk, then its line in the journal."""
        ids = self.ids(block)
        self._array[ids[0] : ids[-1] + 1] = images
        self._array.flush()
        journal = durable.Appender(self._folder / f"done-{rank}")
        journal.add(f"{block}\n".encode("ascii"))
        journal.sync()
        journal.close()


def _pack(folder: Path, out: Path, spec: SampleSpec, classes: int, provenance: dict[str, Any]) -> None:
    """All parts into one .npz, which appears under its name only when it is whole."""
    labels = spec.labels(torch.arange(spec.n), classes)
    label = np.full(spec.n, -1, dtype=np.int64) if labels is None else labels.numpy()
    np.save(folder / "label.npy", label)
    np.save(folder / "provenance.npy", np.array(json.dumps(provenance, sort_keys=True)))
    draft = folder / "all.npz"
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in ("image", "label", "provenance"):
            archive.write(folder / f"{name}.npy", f"{name}.npy")
    draft.replace(out)
    shutil.rmtree(folder)  # with the lock in it
