"""A certification with its folder: what was asked, one line a certificate, totals; killed, it goes on.

spec.json            all that changes a figure; its sha256 is the identity
certificates.jsonl   one line an example, appended and flushed as it is finished
record.json          totals, written last
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustgen import durable
from robustgen.certify.certify import Certificate, certify
from robustgen.certify.design import Design, make_design
from robustgen.certify.logs import CertificationLog
from robustgen.certify.noise import GridNoise
from robustgen.certify.report import measured
from robustgen.certify.votes import Voter
from robustgen.data import Dataset
from robustgen.environment import describe_environment
from robustgen.errors import RecordError
from robustgen.progress import Progress
from robustgen.ranks import Ranks
from robustgen.spec import expand_ids

__all__ = ["CertificationSpec", "as_log", "read_certificates", "recorded_precision", "run_certification"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationSpec:
    """A certification to be made; two with the same identity give the same certificates.

    Attributes:
        classifier, weights_sha256: what is smoothed, with its denoiser where there is one.
        data, data_sha256, ids: the examples.
        noise, sigma, bits: see `GridNoise`.
        method, profile, radii, samples, selection, alpha: see `make_design` and `certify`.
        seed: of all noise.
        precision: form of the certified function.
        schema: of this file.
    """

    classifier: str
    weights_sha256: str
    data: str
    data_sha256: str
    ids: str
    noise: str
    sigma: float
    bits: int
    method: str
    profile: str
    radii: tuple[float, ...]
    samples: int
    selection: int
    alpha: float
    seed: int
    precision: str
    schema: int = 1

    def identity(self) -> str:
        """sha256 of the canonical JSON of this spec."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def design(self, pixels: int) -> Design:
        """Looks and boundaries for images of so many pixels."""
        return make_design(
            self.method, radii=self.radii, noise=self.grid_noise(), pixels=pixels, samples=self.samples,
            alpha=self.alpha, profile=self.profile,
        )  # fmt: skip

    def grid_noise(self) -> GridNoise:
        """The noise."""
        return GridNoise(self.sigma, self.noise, self.bits)


def recorded_precision(folder: Path, spec: CertificationSpec) -> str | None:
    """The form that an earlier process chose for this very certification, so that it goes on in it; else None."""
    path = folder / "spec.json"
    if not path.is_file():
        return None
    held = _read_json(path)
    mine = json.loads(json.dumps(asdict(spec)))
    return str(held["precision"]) if {**mine, "precision": held.get("precision")} == held else None


def run_certification(
    spec: CertificationSpec, base: nn.Module, dataset: Dataset, folder: Path, *, classes: int, batch_size: int,
    device: torch.device, progress: Progress, ranks: Ranks = Ranks(),  # noqa: B008 -- frozen
) -> dict[str, Any]:  # fmt: skip
    """Certify every example of the spec, or go on with what is left; a finished one is only read.

    Args:
        spec: what is asked.
        base: the function that is certified.
        dataset: the images.
        folder: the run folder.
        classes: of the base.
        batch_size: noised images sent at once; changes no figure but by rounding inside the base.
        device: where the base is.
        progress: told how the work goes.
        ranks: the processes that share the examples.

    Raises:
        RecordError: the folder holds another certification; the fields that differ are named.
        SpecError: it is in use, or the base's output is not finite.
    """
    if (folder / "record.json").is_file():
        _check_same(folder, spec)
        progress.note(f"this certification was finished before; its record is read from {folder}.")
        return _read_json(folder / "record.json")
    lock = _open(folder, spec, ranks)
    try:
        _work(spec, base, dataset, folder, classes, batch_size, device, progress, ranks)
        ranks.gather(None)
        if ranks.first:
            return _close(folder, spec)
    finally:
        if lock is not None:
            lock.release()
    return {}


def _open(folder: Path, spec: CertificationSpec, ranks: Ranks) -> durable.FolderLock | None:
    lock = None
    if ranks.first:
        with durable.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "spec.json").is_file():
                _check_same(folder, spec)
            lock = durable.FolderLock(folder)
            if not (folder / "spec.json").is_file():
                durable.write_json(folder / "spec.json", asdict(spec))
    ranks.gather(None)
    return lock


def _check_same(folder: Path, spec: CertificationSpec) -> None:
    held, mine = _read_json(folder / "spec.json"), json.loads(json.dumps(asdict(spec)))
    keys = [key for key in sorted(mine | held) if mine.get(key) != held.get(key)]
    differing = [f"{key}: {mine.get(key)} / {held.get(key)}" for key in keys]
    if differing:
        raise RecordError(
            f"--out: {folder} holds another certification (asked / there: {'; '.join(differing)}); name another folder."
        )


def _work(
    spec: CertificationSpec, base: nn.Module, dataset: Dataset, folder: Path, classes: int, batch_size: int,
    device: torch.device, progress: Progress, ranks: Ranks,
) -> None:  # fmt: skip
    done = {one.id: one for one in read_certificates(folder)}
    todo = [id_ for id_ in expand_ids(spec.ids) if id_ not in done][ranks.rank :: ranks.size]
    if done:
        progress.note(f"{len(done)} examples were certified before; going on.")
    progress.start("certify", len(todo))
    file = durable.Appender(folder / f"certificates{f'-{ranks.rank}' if ranks.rank else ''}.jsonl")
    begun, count, right = time.monotonic(), 0, 0

    def finish(one: Certificate) -> None:
        nonlocal count, right
        file.add((json.dumps(asdict(one), sort_keys=True) + "\n").encode())
        count, right = count + 1, right + (one.predict == one.label)
        progress.advance(count, f"{right} certified right, {(time.monotonic() - begun) / count:.2f} s each")

    voter = Voter(base, spec.grid_noise(), seed=spec.seed, classes=classes, batch_size=batch_size, device=device)
    with durable.disk_errors(folder):
        design = spec.design(math.prod(dataset.shape))
        certify(voter, _examples(dataset, todo), design, selection=spec.selection, finish=finish)
        file.sync()
    file.close()


def _examples(dataset: Dataset, ids: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray[Any, Any]]]:
    for id_ in ids:
        x, y = dataset.batch([id_])
        yield id_, int(y[0]), x[0].double().numpy()


def read_certificates(folder: Path) -> list[Certificate]:
    """Every finished certificate of a folder, in the order of their ids; a line cut off by a crash is left out.

    Raises:
        RecordError: a whole line that cannot be read.
    """
    found = {}
    for path in sorted(folder.glob("certificates*.jsonl")):
        content = path.read_bytes()
        durable.cut(path, content.rfind(b"\n") + 1)
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
            try:
                one = Certificate(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise RecordError(f"{path}, line {number}, cannot be read: {error}.") from None
            found[one.id] = one
    return [found[id_] for id_ in sorted(found)]


def as_log(found: Sequence[Certificate], name: str) -> CertificationLog:
    """Certificates in the form that tables are made from."""
    ids, label, predict, radius = (
        np.array([getattr(one, key) for one in found]) for key in ("id", "label", "predict", "radius")
    )
    return CertificationLog(name, ids, label, predict, radius.astype(float), np.zeros(len(found)))


def _close(folder: Path, spec: CertificationSpec) -> dict[str, Any]:
    """Merge what ranks wrote, sort it, and write the totals last."""
    found = read_certificates(folder)
    lines = "".join(json.dumps(asdict(one), sort_keys=True) + "\n" for one in found)
    with durable.disk_errors(folder):
        durable.replace(folder / "certificates.jsonl", lines.encode())
        (row,) = measured([as_log(found, spec.classifier)], spec.radii)["rows"]
        record = {
            "spec": asdict(spec), "identity": spec.identity(), "n": len(found), "certified": row["certified"],
            "acr": row["acr"], "abstained": row["abstained"], "samples": sum(one.samples for one in found),

            "environment": describe_environment(), "schema": 1, "run": str(folder),
        }  # fmt: skip
        durable.write_json(folder / "record.json", record)
        for path in folder.glob("certificates-*.jsonl"):
            durable.remove(path)
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    return held
