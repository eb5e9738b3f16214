"""What a certification leaves: its specification, one line a certificate, and the totals that follow from the lines."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustgen.certify.certify import Certificate
from robustgen.certify.folder import holds_fields, parse_lines, read_object
from robustgen.certify.logs import CertificationLog, read_log
from robustgen.certify.report import measured
from robustgen.certify.spec import CertificationSpec
from robustgen.errors import RecordError

__all__ = [
    "Certification", "CertificationSpec", "as_log", "gather_logs", "holds_certification", "load_certification",
    "read_certificates", "read_spec", "summarise",
]  # fmt: skip

JOURNAL = "certificates.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certification:
    """A finished certification as its folder tells it; nothing is checked but that it can be read."""

    folder: Path
    spec: CertificationSpec
    record: dict[str, Any]
    certificates: list[Certificate]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        channels, height, width = self.record["shape"]
        return channels, height, width

    @property
    def pixels(self) -> int:
        """Of an image, channels included."""
        return math.prod(self.shape)

    def log(self, name: str | None = None) -> CertificationLog:
        """Its certificates, in the form that tables are made from."""
        spec = self.spec
        return as_log(
            self.certificates, name or f"{spec.classifier}, {spec.noise} {spec.sigma:g}", norm=spec.norm,
            pixels=self.pixels,
        )  # fmt: skip


def holds_certification(folder: Path) -> bool:
    """Whether a run folder is one of `robustgen certify`, finished or not."""
    return holds_fields(folder, "noise", "sigma")


def load_certification(folder: Path) -> Certification:
    """A finished certification.

    Raises:
        RecordError: there is none, it is not finished, or a file of it cannot be read.
    """
    if not holds_certification(folder):
        raise RecordError(f"{folder} is not the folder of a certification, which `robustgen certify` leaves.")
    spec, path = read_spec(folder), folder / "record.json"
    if not path.is_file():
        raise RecordError(
            f"{folder} is an unfinished certification; the same certify command goes on with it (no record.json)."
        )
    record = read_object(path)
    if record.get("schema") != 1:
        raise RecordError(f"{path} has schema {record.get('schema')}, expected 1.")
    shape = record.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise RecordError(f"{path}: expected the shape of the images, such as [1, 28, 28], got {shape}.")
    return Certification(folder=folder, spec=spec, record=record, certificates=read_certificates(folder))


def read_spec(folder: Path) -> CertificationSpec:
    """The specification in a folder.

    Raises:
        RecordError: it cannot be read, or is that of something else.
    """
    path = folder / "spec.json"
    return CertificationSpec.from_json(read_object(path), str(path))


def read_certificates(folder: Path) -> list[Certificate]:
    """The lines of a finished certification, in their order.

    Raises:
        RecordError: no such file, or a line that cannot be read; its number is named.
    """
    path = folder / JOURNAL
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    return parse_lines(text, path, Certificate.from_line)


def summarise(
    spec: CertificationSpec, found: Sequence[Certificate], shape: tuple[int, ...]
) -> dict[str, Any]:  # fmt: skip
    """What record.json says of the certificates; `journal_sha256` is over their lines, seconds left out.

    Args:
        spec: what was asked.
        found: the certificates, in the order of their ids.
        shape: (C, H, W) of the images.
    """
    log = as_log(found, spec.classifier, norm=spec.norm, pixels=math.prod(shape))
    (row,) = measured([log], spec.radii)["rows"]
    lines = "\n".join(replace(one, seconds=None).line() for one in found)
    return {
        **{key: row[key] for key in ("n", "certified", "acr", "abstained", "norm", "linf")},
        "samples": sum(one.samples for one in found), "shape": list(shape),
        "journal_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }  # fmt: skip


def as_log(
    found: Sequence[Certificate], name: str, *, norm: str | None = None, pixels: int | None = None
) -> CertificationLog:  # fmt: skip
    """Certificates in the form that tables are made from."""
    ids, label, predict = (
        np.array([getattr(one, key) for one in found], dtype=np.int64) for key in ("id", "label", "predict")
    )
    seconds = np.array([np.nan if one.seconds is None else one.seconds for one in found])
    return CertificationLog(name, ids, label, predict, np.array([one.radius for one in found]), seconds, norm, pixels)


def gather_logs(paths: Sequence[Path], *, pixels: int | None = None) -> list[CertificationLog]:
    """Logs of both kinds: folders of `robustgen certify`, and files of the field.

    Args:
        paths: folders and files.
        pixels: of the images behind files, channels included, or None.
    """
    return [load_certification(path).log() if path.is_dir() else read_log(path, pixels=pixels) for path in paths]
